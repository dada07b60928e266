"""What onpolicy does on a GPU: kernels, dtypes, memory against the forecast, speed. ``python -m benchmarks.gpu``."""
