"""CUDA kernels for FDAT-RD, written in Triton and compiled ahead of time; the package contains their PTX.

There is one module for each part of the network: `convolutions`, `window_attention`, `channel_attention`,
`dictionary_attention` and `feed_forward`, and `upsampler` and `sampling` for the tail. They share the functions in
`primitives`. Only `catalog`, `compile` and the tests import these modules. At run time only `manifest` is imported,
which needs neither Triton nor PyTorch.

Conventions of all kernels:

- Tokens are (N, C), in row-major order of the map, in fp16 or bf16. Sums are fp32. ``rows`` are indices of tokens, and
  ``row_mask`` is false for indices beyond the last token. ``stats`` (N, 2) holds the mean and the reciprocal standard
  deviation (rstd) of every token. A kernel that writes tokens adds the residual and also writes their statistics.
- Weight and bias of a norm are folded into the layer after it. The norm itself is then (token - mean) · rstd.
- The channels of a token are processed in C / BLOCK_C blocks, because the dimensions of a Triton tensor must be powers
  of two, and 96 and 192 are not. ``blocks`` is a tuple with one tensor (rows, BLOCK_C) for each block of channels.
- Sums over the whole frame are computed in parts: a program sums ``tiles_per_part`` tiles of BLOCK_ROWS tokens, and
  another kernel adds the parts.
- A tap is one position of a convolution's kernel. Taps are numbered row by row.
- Offsets are 32-bit integers. The planner rejects buffers of 2³¹ elements or more.
- No buffer may be both an input and an output of the same launch.
"""
