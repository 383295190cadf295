"""The native backend for CPUs with AVX2 or AVX-512, with kernels of this package."""
