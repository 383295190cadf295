"""The compiled CUDA kernels of FDAT-RD, as PTX. Their sources are in the repository's folder `kernels`."""
