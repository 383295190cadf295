"""What our CUDA kernels need: registers, shared memory, bytes, operations and floors, without a GPU.

`python -m benchmarks.kernels` writes the tables of docs/gpu_internals.md. Registers and shared memory are those of the
manifest. Bytes count every buffer of a kernel once, whatever the GPU's caches do; operations are those of products, two
for a multiplication and an addition. A floor is the time for the larger of both, at the card's full rates.
"""

import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from vsfdatrd.archs.fdat_rd import WINDOW, FdatRdConfig, variant_config
from vsfdatrd.archs.upsamplers import UPSAMPLERS
from vsfdatrd.backends.cuda.packing import TYPES
from vsfdatrd.backends.cuda.plan import Frame, Launch, Region, assume_all_active
from vsfdatrd.backends.cuda.planner import make_plan
from vsfdatrd.backends.cuda.tails import is_fused
from vsfdatrd.kernels import manifest
from vsfdatrd.kernels.compile import ARCHITECTURES
from vsfdatrd.options import Precision

PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu_internals.md"
MARKS = re.compile(r"(?<=<!-- kernels: begin -->\n).*?(?=<!-- kernels: end -->)", re.DOTALL)

CARDS = {"RTX 4090": (1.008e12, 165.2e12), "H100": (3.35e12, 989e12)}
"""Bytes a second, and operations a second of fp16 products with fp32 sums, as NVIDIA states them."""
PARTS = 128
"""Parts into which the tokens are split for sums over the whole frame."""
HEIGHT, WIDTH = 540, 720
PRECISION: Precision = "fp16"


@dataclass(frozen=True, slots=True)
class Need:
    """What one launch of a kernel needs."""

    launches: int
    """How often it runs in a frame."""
    bytes: int
    operations: int

    def floor(self, card: str) -> float:
        """Return the seconds that a launch takes at least."""
        bandwidth, rate = CARDS[card]
        return max(self.bytes / bandwidth, self.operations / rate)


def needs(config: FdatRdConfig, height: int = HEIGHT, width: int = WIDTH) -> dict[str, Need]:
    """Return what every kernel needs for a frame with all branches active, in the order of the network.

    Args:
        config: The network, with a tail of ``transpose+conv``, 4 times; of other tails, see `needs_of_tail`.
        height: Height of the frame, a multiple of the network's.
        width: Width of the frame, likewise.
    """
    c, f, u, m = config.embed_dim, config.ffn_dim, config.unshuffle, config.dict_tokens
    n, heads, window = height * width // u**2, config.heads, WINDOW[0] * WINDOW[1]
    token, stats = 2 * n * c, 8 * n
    in_features, square = 27 * u**2, c * c
    kinds = [kind for group in config.groups for kind in group]
    spatial, channel, dictionary = (kinds.count(kind) for kind in ("spatial", "channel", "dictionary"))
    dictionary_parts, moments = PARTS * heads * m * 34 * 4, PARTS * square * 4
    groups, blocks = len(config.groups), len(kinds)
    return {
        "conv_first": Need(1, 12 * n * u**2 + 3 * token + stats + 4 * in_features * c, 2 * n * in_features * c),
        "norm_qkv": Need(spatial, 4 * token + stats + 6 * square, 6 * n * square),
        "depthwise_gelu": Need(spatial, 2 * token + stats, 0),
        "pooled_gate": Need(spatial, 4 * PARTS * c + 8 * c * config.gate_dim, 0),
        "window_attention": Need(
            spatial, 6 * token + stats + 2 * heads * window**2 + 2 * square, 4 * n * window * c + 2 * n * square
        ),
        "partial_moments": Need(channel, token + stats + moments, 2 * n * square),
        "merge_moments": Need(channel, moments + 4 * square, 0),
        "attend_value_weight": Need(channel, 20 * square, 0),
        "channel_attention_matrix": Need(channel, 10 * square, 2 * c * square),
        "apply_channel_attention": Need(channel, 2 * token + 2 * stats + 2 * square, 2 * n * square),
        "refine_dictionary_parts": Need(
            dictionary, token + stats + dictionary_parts + 4 * square, 4 * n * square + 4 * n * m * c
        ),
        "refine_dictionary": Need(dictionary, dictionary_parts + 8 * m * c, 0),
        "dictionary_keys_values": Need(dictionary, 8 * m * c + 8 * square, 4 * m * square),
        "dictionary_attention": Need(dictionary, 2 * token + 2 * stats + 4 * (square + m * c), 4 * n * c * (c + m)),
        "ffn_fc1": Need(blocks, token + stats + 2 * n * f + 2 * c * f, 2 * n * c * f),
        "ffn_smix_fc2": Need(blocks, 2 * token + stats + 2 * n * f + 2 * c * f, 2 * n * c * f),
        "conv_group": Need(groups, 3 * token + stats + 18 * square, 18 * n * square),
        "conv_after": Need(1, 4 * token + 18 * square, 18 * n * square),
        "conv_transpose_products": Need(1, token + 768 * n + 32 * square, 32 * n * square + 8 * n * c * 64),
        "sum_products_conv_last": Need(1, 768 * n + 192 * n, 0),
    }


def needs_of_tail(config: FdatRdConfig, height: int = HEIGHT, width: int = WIDTH) -> list[tuple[str, Need]]:
    """Return what each launch of a tail needs, in fp16, with its kernel.

    Args:
        config: The network, with a number of channels that there are kernels for.
        height: Height of the frame, a multiple of the network's.
        width: Width of the frame, likewise.
    """
    if is_fused(config):
        whole = needs(config, height, width)
        return [(name, whole[name]) for name in ("conv_transpose_products", "sum_products_conv_last")]
    compiled = manifest.load().of_network(config.embed_dim, PRECISION)
    tiles = {name: each.constants for name, each in compiled.items()}
    plan = make_plan(config, assume_all_active(config), tiles, height, width, TYPES[PRECISION])
    frame = 12 * height * width * config.scale**2
    tail = [launch for launch in plan.launches if launch.module.startswith("upsampler")]
    return [(launch.kernel, _need(launch, compiled[launch.kernel], frame)) for launch in tail]


def _need(launch: Launch, kernel: manifest.CompiledKernel, frame: int) -> Need:
    """Return what a launch of a tail needs; `frame` are the bytes of the output."""
    names = (name for name, _ in kernel.parameters)
    numbers = {name: each for name, each in zip(names, launch.arguments, strict=True) if isinstance(each, int)}
    moved = sum(each.size for each in launch.arguments if isinstance(each, Region))
    moved += frame * (Frame(is_output=True) in launch.arguments)
    if "kernel_size" not in numbers:
        return Need(1, moved, 0)
    matrix = numbers["kernel_size"] ** 2 * numbers["in_channels"] * numbers["out_channels"]
    matrix *= launch.grid[2]  # one for each pixel that a token becomes
    return Need(1, moved + 2 * matrix, 2 * numbers["height"] * numbers["width"] * matrix)


def table_of_tails() -> list[str]:
    """Return the lines of the table of tails, for medium without pixel unshuffle."""
    heads = ["tail, times", "launches", "kernels", "MB", "GFLOP", *(f"floor, ms, {card}" for card in CARDS)]
    lines = ["| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
    for upsampler in UPSAMPLERS:
        scales = (1,) if upsampler == "conv" else (2, 3, 4)
        for scale in scales:
            launches = needs_of_tail(variant_config("medium", scale=scale, unshuffle_mod=False, upsampler=upsampler))
            cells = [
                f"{upsampler}, {scale}",
                str(len(launches)),
                ", ".join(f"`{name}`" for name in dict.fromkeys(name for name, _ in launches)),
                f"{sum(need.bytes for _, need in launches) / 1e6:.0f}",
                f"{sum(need.operations for _, need in launches) / 1e9:.0f}",
                *(f"{sum(need.floor(card) for _, need in launches) * 1e3:.2f}" for card in CARDS),
            ]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def table_of_tail_kernels() -> list[str]:
    """Return the lines of the table of the kernels that only other tails than ``transpose+conv``, 4 times, run."""
    loaded = manifest.load()
    body = needs(variant_config("medium"))
    short = [name.removeprefix("sm_") for name in ARCHITECTURES]
    lines = [f"| kernel | warps | registers ({' / '.join(short)}) | shared, KiB |", "|---|---|---|---|"]
    for name in dict.fromkeys(name for name, _, _ in loaded.kernels if name not in body):
        kernel = loaded.kernels[name, 128, PRECISION]
        cells = [f"`{name}`", str(kernel.warps), _registers(kernel), f"{kernel.shared / 1024:.1f}"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _registers(kernel: manifest.CompiledKernel) -> str:
    """Return a kernel's registers on each architecture, or the number if it is the same on all of them."""
    registers = [str(kernel.registers[each]) for each in ARCHITECTURES]
    return registers[0] if len(set(registers)) == 1 else " / ".join(registers)


def table_of_kernels() -> list[str]:
    """Return the lines of the table of kernels, for medium."""
    config = variant_config("medium")
    loaded = manifest.load()
    short = [name.removeprefix("sm_") for name in ARCHITECTURES]
    lines = [
        f"| kernel | launches | MB | GFLOP | warps | registers ({' / '.join(short)}) | shared, KiB | "
        + " | ".join(f"floor, µs, {card}" for card in CARDS)
        + " |",
        "|---" * (7 + len(CARDS)) + "|",
    ]
    for name, need in needs(config).items():
        kernel = loaded.kernels[name, config.embed_dim, PRECISION]
        cells = [
            f"`{name}`",
            str(need.launches),
            f"{need.bytes / 1e6:.1f}",
            f"{need.operations / 1e9:.1f}",
            str(kernel.warps),
            _registers(kernel),
            f"{kernel.shared / 1024:.1f}",
            *(f"{need.floor(card) * 1e6:.1f}" for card in CARDS),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def table_of_frames() -> list[str]:
    """Return the lines of the table of whole frames."""
    lines = [
        "| network | launches | GB | GFLOP | " + " | ".join(f"floor, ms, {card}" for card in CARDS) + " |",
        "|---" * (4 + len(CARDS)) + "|",
    ]
    for name in ("small", "medium", "large"):
        each = needs(variant_config(name)).values()
        cells = [
            name,
            str(sum(need.launches for need in each)),
            f"{sum(need.launches * need.bytes for need in each) / 1e9:.1f}",
            f"{sum(need.launches * need.operations for need in each) / 1e9:.0f}",
            *(f"{sum(need.launches * need.floor(card) for need in each) * 1e3:.1f}" for card in CARDS),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def table_of_files() -> list[str]:
    """Return the lines of the table of files in the package."""
    lines = ["| file | kernels | PTX, kB | in the wheel, kB |", "|---|---|---|---|"]
    total = 0
    kernels = list(manifest.load().kernels.values())
    for path in sorted(manifest.FOLDER.iterdir()):
        inside = [kernel for kernel in kernels if kernel.archive == path.name]
        size = path.stat().st_size
        if not inside:  # the manifest, which a wheel compresses
            continue
        total += size
        length = sum(kernel.length for kernel in inside)
        lines.append(f"| `{path.name}` | {len(inside)} | {length / 1e3:.0f} | {size / 1e3:.0f} |")
    plain = sum(kernel.length for kernel in kernels)
    lines.append(f"| together | {len(kernels)} | {plain / 1e3:.0f} | {total / 1e3:.0f} |")
    return lines


def text() -> str:
    """Return the tables as they stand in docs/gpu_internals.md."""
    tables = (
        "\n".join(table())
        for table in (table_of_frames, table_of_kernels, table_of_tails, table_of_tail_kernels, table_of_files)
    )
    return "\n" + "\n\n".join(tables) + "\n\n"


def main(arguments: Sequence[str]) -> None:
    """Write the tables into docs/gpu_internals.md."""
    if arguments:
        raise SystemExit(f"benchmarks.kernels takes no arguments, such as {arguments[0]!r}")
    page = PAGE.read_text(encoding="utf-8")
    PAGE.write_text(MARKS.sub(lambda _: text(), page), encoding="utf-8", newline="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
