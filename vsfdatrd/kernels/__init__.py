"""CUDA kernels for FDAT-RD, written in Triton, and compiled ahead of time into the PTX that the package contains.

One file for each part of the network: `convolutions`, `window_attention`, `channel_attention`, `dictionary_attention`,
`feed_forward`, and for its tail `upsampler` and `sampling`. `primitives` are functions that they share. Only `catalog`
and `compile` import them, and tests: at run time neither Triton nor PyTorch is needed, but `manifest` alone.

What all kernels have in common:

- Tokens are (N, C), in row-major order of the map, in fp16 or bf16; ``rows`` are numbers of tokens, and ``row_mask`` is
  false beyond the last one. Sums are fp32. ``stats`` (N, 2) holds the mean and the reciprocal standard deviation (rstd)
  of every token. A kernel that writes tokens adds the residual and writes their statistics.
- Weight and bias of a norm are folded into the layer after it, so that a norm is (token - mean) · rstd.
- The channels of a token are processed in C / BLOCK_C blocks, because the sides of Triton's tensors are powers of two,
  and 96 and 192 are not. A tuple holds a tensor (rows, BLOCK_C) for each block.
- Sums over the whole frame are computed in parts: a program sums ``tiles_per_part`` tiles of BLOCK_ROWS tokens, and
  another kernel adds the parts.
- A tap is one of the positions of a convolution's kernel, numbered row by row.
- Offsets are 32-bit integers: the planner refuses buffers of 2³¹ elements.
- No output may be an input of the same launch.
"""
