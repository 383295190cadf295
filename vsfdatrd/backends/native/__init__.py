"""The backend for processors with AVX2: kernels of our own."""
