"""A rehearsed visit to a machine with an NVIDIA GPU: packing, measurements in order of value, and the report.

See `__main__.py` for the commands and docs/gpu_internals.md for the parts and their order.
"""
