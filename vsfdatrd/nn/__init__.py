"""PyTorch modules of the networks, independent of VapourSynth and of any backend."""
