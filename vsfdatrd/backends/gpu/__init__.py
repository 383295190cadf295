"""What the backends for NVIDIA GPUs share: the list of GPUs, CUDA resources, the double buffering of frames."""
