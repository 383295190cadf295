"""Architectures: detecting a network from a weights file, its configuration and input sizes. No torch, no
VapourSynth.
"""
