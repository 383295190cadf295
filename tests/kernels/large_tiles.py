"""Large tiles, so that Triton's interpreter runs few programs of the same code."""

from collections.abc import Mapping

LARGE = {
    "BLOCK_ROWS": 1024,
    "BLOCK_QUERIES": 1024,
    "BLOCK_KEYS": 512,
    "BLOCK_COLUMNS": 64,
    "BLOCK_PIXELS": 16384,
    "PADDED_TOKENS": 1024,
}


def enlarge_tiles(kernel: str, constants: Mapping[str, int]) -> dict[str, int]:
    """Return a kernel's compile-time constants with larger tiles where they have tile sizes."""
    changed = {name: size for name, size in LARGE.items() if name in constants}
    if kernel in ("norm_qkv", "dictionary_keys_values"):
        del changed["BLOCK_COLUMNS"]  # must divide 3 · 96
    if kernel in ("conv_maps", "conv_pixel_shuffle"):
        del changed["BLOCK_COLUMNS"]  # must divide 96
    if kernel == "lda_attention":
        changed["BLOCK_PIXELS"] = 1024  # times 16 positions and 8 channels
    if kernel == "partial_moments":
        changed["BLOCK_ROWS"] = 256  # several parts
    if kernel == "merge_moments":
        changed["BLOCK_C"] = 32
    return {**constants, **changed}
