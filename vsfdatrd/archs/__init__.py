"""Architectures: detecting a network from a weights file, its configuration and input sizes.

Nothing here imports torch or VapourSynth.
"""
