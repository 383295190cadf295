"""CUDA kernels for FDAT-RD, written in Triton, and compiled ahead of time into the PTX that the package contains.

`ends`, `tokens`, `windows`, `channel` and `dictionary` are the kernels, with `maps` and `sampling` for some tails, and
`blocks` what they share. Only `catalog` and `compile` import them, and tests: at run time neither Triton nor PyTorch is
needed, but `manifest` alone.

What all kernels have in common:

- Tokens are (N, C), in row-major order of the map, in fp16 or bf16. Sums are fp32. `stats` (N, 2) holds the mean and
  the reciprocal standard deviation of every token. Who writes tokens writes their statistics, and adds the residual.
- Weight and bias of a norm are folded into what follows it, so that a norm is (token - mean) · rstd.
- The channels of a token are processed in C / BLOCK blocks, as Triton's tensors have powers of two as their sides, and
  96 and 192 are none. A tuple holds a tensor for each block.
- Offsets are 32-bit integers: who plans a launch refuses buffers of 2³¹ elements.
- No output may be an input of the same launch.
"""
