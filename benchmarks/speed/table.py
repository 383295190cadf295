"""Results as a table in Markdown, to be read in a terminal and pasted anywhere."""

from collections.abc import Sequence
from typing import Any

from benchmarks.speed.cases import OURS

type Row = dict[str, Any]

COLUMNS = ("", "fps", "min–max", "vsfdatrd is", "CPU s/frame", "memory", "first frame", "PSNR")
GPU_COLUMNS = ("GPU s/frame", "VRAM", "J/frame")


def table(rows: Sequence[Row]) -> str:
    """Format the rows of a group; a contestant that could not run is a line with the reason."""
    gpu = any("gpu" in row for row in rows)
    columns = [*COLUMNS, *(GPU_COLUMNS if gpu else ())]
    names = row_names(rows)
    base = next((row for row in rows if row["contestant"] == OURS and "fps" in row), None)
    lines = [columns, ["---"] * len(columns)]
    for name, row in zip(names, rows, strict=True):
        lines.append([name, *_cells(row, base, gpu)])
    widths = [
        max(len(line[i]) for line in lines if len(line) > i and len(line) == len(columns)) for i in range(len(columns))
    ]
    return "\n".join(_line(line, widths) for line in lines)


def rate(fps: float) -> str:
    """Frames per second with three decimals, from 10 on with fewer."""
    return f"{fps:.1f}" if fps >= 100 else f"{fps:.2f}" if fps >= 10 else f"{fps:.3f}"


def compared(old: dict[str, Any], new: dict[str, Any]) -> str:
    """Compare two results.

    Args:
        old: What `python -m benchmarks` saved, without the machine.
        new: Likewise.

    Returns:
        A table of the cases that both contain, with the speedup of the second.
    """
    before = {_identity(row): row for group in old["groups"] for row in group["rows"] if "fps" in row}
    columns = ["", "first", "second", "ratio"]
    lines = [columns, ["---"] * 4]
    for group in new["groups"]:
        for row in group["rows"]:
            known = before.get(_identity(row))
            if known and "fps" in row:
                first, second = known["fps"]["median"], row["fps"]["median"]
                name = f"{row['model']}, {row['size'][0]}×{row['size'][1]}: {row['label']}"
                lines.append([name, rate(first), rate(second), f"{second / first:.2f}"])
    if len(lines) == 2:
        return "The two results have no case in common."
    return "\n".join(_line(line, [max(len(other[i]) for other in lines) for i in range(4)]) for line in lines)


def _identity(row: Row) -> tuple[Any, ...]:
    return (row["label"], row["model"], *row["size"], row["clip"])


def row_names(rows: Sequence[Row]) -> list[str]:
    """Return names that distinguish rows: the label, plus model and size if the rows have several."""
    several = {key for key in ("model", "size") if len({str(row[key]) for row in rows}) > 1}
    return [
        ", ".join(
            [row["label"]]
            + ([row["model"]] if "model" in several else [])
            + ([f"{row['size'][0]}×{row['size'][1]}"] if "size" in several else [])
        )
        for row in rows
    ]


def _cells(row: Row, base: Row | None, gpu: bool) -> list[str]:
    if "fps" not in row:
        return [f"not measured: {row.get('missing') or row.get('error')}"]
    fps = row["fps"]
    psnr, cold = row.get("psnr_to_pytorch_db"), row.get("first_frame_cold_s")
    ratio = f"{base['fps']['median'] / fps['median']:.2f}×" if base and base is not row else ""
    first = f"{row['first_frame_s']:.1f} s" + (f" ({cold:.1f} s)" if cold else "")
    cells = [
        rate(fps["median"]),
        f"{rate(fps['min'])}–{rate(fps['max'])}",
        ratio,
        f"{row['cpu_seconds_per_frame']:.3g}" if "cpu_seconds_per_frame" in row else "",
        f"{row['peak_memory_mib']:,} MiB" if "peak_memory_mib" in row else "",
        first,
        f"{psnr:.0f} dB" if psnr else "",
    ]
    if gpu:
        about = row.get("gpu")
        cells += (
            [
                f"{about['busy_seconds_per_frame']:.4f}",
                f"{about['memory_mib']:,.0f} MiB",
                f"{about['joules_per_frame']:.1f}",
            ]
            if about
            else ["", "", ""]
        )
    return cells


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = [cell.ljust(width) for cell, width in zip(cells, widths, strict=False)]
    return f"| {' | '.join(padded + [''] * (len(widths) - len(cells)))} |"
