// Read bandwidth: sums a float array with several threads. usage: bandwidth MIB THREADS REPEATS
// Prints the median over the repeats in GB/s.
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
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

int main(int n, char **v) {
    if (n < 4) return 2;
    count = (size_t)atol(v[1]) << 18;
    threads = atoi(v[2]);
    repeats = atoi(v[3]);
    array = malloc(count * sizeof *array);
    sums = calloc(threads, sizeof *sums);
    seconds = calloc(repeats, sizeof *seconds);
    pthread_t *all = calloc(threads, sizeof *all);
    if (!array || !sums || !seconds || !all) return 1;
    for (size_t i = 0; i < count; i++) array[i] = 1e-9f * (i & 1023);
    pthread_barrier_init(&barrier, 0, threads);
    for (long i = 0; i < threads; i++) pthread_create(&all[i], 0, work, (void *)i);
    for (int i = 0; i < threads; i++) pthread_join(all[i], 0);
    qsort(seconds, repeats, sizeof *seconds, compare);
    printf("%.3f\n", count * sizeof *array / seconds[repeats / 2] / 1e9);
    return sums[0] > 1e30f;
}
