"""One rehearsed visit to a machine with an NVIDIA GPU: what is taken along, what is found out there, in which order.

See `__main__.py` for the commands and docs/gpu.md for the plan of the minutes.
"""
