"""Common code of the backends for NVIDIA GPUs: list of GPUs, CUDA resources, double buffering of frames."""
