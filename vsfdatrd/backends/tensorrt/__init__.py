"""The TensorRT backend for NVIDIA GPUs."""
