// Read bandwidth: sums a float array with several threads. usage: bandwidth MIB THREADS REPEATS
// Prints the medians over the repeats in GB/s: of memory in small pages, as programs have it, and in large ones.
#define _GNU_SOURCE
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

enum { LANES = 128 };  // independent sums, so that the compiler can use vectors
static float *array, *sums;
static size_t count;
static int threads;
static pthread_barrier_t barrier;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec + 1e-9 * t.tv_nsec;
}

static int repeats;
static double *seconds;

static void *work(void *argument) {
    long id = (long)argument;
    size_t part = count / threads / LANES * LANES, first = part * id;
    for (int r = 0; r < repeats; r++) {
        float sum[LANES] = {0};
        pthread_barrier_wait(&barrier);
        double begin = now();
        for (size_t i = first; i < first + part; i += LANES)
            for (int k = 0; k < LANES; k++) sum[k] += array[i + k];
        pthread_barrier_wait(&barrier);
        if (id == 0) seconds[r] = now() - begin;
        for (int k = 0; k < LANES; k++) sums[id] += sum[k];
    }
    return 0;
}

static int compare(const void *a, const void *b) {
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

// The median of the repeats, GB/s; `advice` says in which pages the array lies.
static double measured(int advice) {
    size_t page = 2 << 20, bytes = count * sizeof *array;
    if (posix_memalign((void **)&array, page, bytes)) exit(1);
    madvise(array, bytes, advice);  // a system that has none refuses: then both are the same
    for (size_t i = 0; i < count; i++) array[i] = 1e-9f * (i & 1023);
    pthread_t *all = calloc(threads, sizeof *all);
    for (long i = 0; i < threads; i++) pthread_create(&all[i], 0, work, (void *)i);
    for (int i = 0; i < threads; i++) pthread_join(all[i], 0);
    qsort(seconds, repeats, sizeof *seconds, compare);
    free(array);
    free(all);
    return bytes / seconds[repeats / 2] / 1e9;
}

int main(int n, char **v) {
    if (n < 4) return 2;
    count = (size_t)atol(v[1]) << 18;
    threads = atoi(v[2]);
    repeats = atoi(v[3]);
    sums = calloc(threads, sizeof *sums);
    seconds = calloc(repeats, sizeof *seconds);
    if (!sums || !seconds) return 1;
    pthread_barrier_init(&barrier, 0, threads);
    double small = measured(MADV_NOHUGEPAGE), large = measured(MADV_HUGEPAGE);
    printf("%.3f %.3f\n", small, large);
    return sums[0] > 1e30f;
}
