"""What the workers of the benchmarks run."""
