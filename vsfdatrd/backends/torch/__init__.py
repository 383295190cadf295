"""The PyTorch backend, for CPUs and NVIDIA GPUs."""
