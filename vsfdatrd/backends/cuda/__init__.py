"""The CUDA backend for NVIDIA GPUs, with kernels of this package."""
