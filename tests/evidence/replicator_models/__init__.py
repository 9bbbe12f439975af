"""TF-Replicator's three benchmarks: ResNet-50, SN-GAN, D4PG."""
