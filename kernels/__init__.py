"""CUDA kernels for FDAT-RD, written in Triton, and compiled ahead of time into the PTX in `vsfdatrd/kernels`.

`ends`, `tokens`, `windows`, `channel` and `dictionary` are the kernels, `blocks` what they share. `catalog` lists the
variants, and `python -m kernels.compile` compiles them. The package contains only the result, since neither Triton nor
PyTorch is needed at run time.

What all kernels have in common:

- Tokens are (N, C), in row-major order of the map, in fp16 or bf16. Sums are fp32. `stats` (N, 2) holds the mean and
  the reciprocal standard deviation of every token. A kernel that writes tokens also writes their statistics, and adds
  the residual.
- Weight and bias of a norm are folded into what follows it, so that a norm is (token - mean) · rstd.
- The channels of a token are processed in C / BLOCK blocks, because the sides of Triton's tensors are powers of
  two, and 96 and 192 are not. A tuple holds a tensor for each block.
- Offsets are 32-bit integers; the plan refuses buffers of 2³¹ elements.
- No output may be an input of the same launch.
"""
