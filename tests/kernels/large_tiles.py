"""Large tiles, so that Triton's interpreter runs few programs of the same code."""

from collections.abc import Mapping

LARGE = {"ROWS": 1024, "PIXELS": 16384, "KEYS": 512, "PADDED": 1024, "COLUMNS": 64, "SIDE": 32}


def enlarged(kernel: str, constants: Mapping[str, int]) -> dict[str, int]:
    """Return a kernel's compile-time constants with larger tiles where they have tile sizes."""
    changed = {name: size for name, size in LARGE.items() if name in constants}
    if kernel in ("norm_qkv", "refine_words"):
        del changed["COLUMNS"]  # must divide 3 · 96
    if kernel in ("convolve_maps", "convolve_pixels"):
        del changed["COLUMNS"]  # must divide 96
    if kernel == "attend_positions":
        changed["PIXELS"] = 1024  # times 16 positions and 8 channels
    if kernel == "second_moment":
        changed["ROWS"] = 256  # several parts
    return {**constants, **changed}
