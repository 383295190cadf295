"""Results as a picture: bars for the headline, a curve for the sweep; several machines in one chart.

Bars show the same network with the same weights; other methods are only in the table.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.speed.cases import OURS
from benchmarks.speed.table import rate, row_names

BLUE, GRAY = "#2a6fb0", "#9a9a9a"


def draw(results: Sequence[dict[str, Any]], file: Path) -> None:
    """Write a PNG.

    Args:
        results: As saved by `python -m benchmarks`, one or several.
        file: The picture.

    Raises:
        ValueError: The results have nothing that is drawn.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    sweep = _rows(results[0], "sweep") if len(results) == 1 else []
    bars = [
        (machine_name(result), row) for result in results for row in _rows(result, "headline") if row["same_network"]
    ]
    if not bars and not sweep:
        raise ValueError("nothing in these results was measured at the headline size, or at several sizes")
    if bars and sweep:
        figure, (left, right) = pyplot.subplots(1, 2, figsize=(13, 5.2), layout="constrained", width_ratios=(3, 2))
    else:
        figure, left = pyplot.subplots(figsize=(9, 5.2), layout="constrained")
        right = left
    if bars:
        _bars(left, bars, several=len(results) > 1)
    if sweep:
        _curve(right, sweep)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)


def machine_name(result: dict[str, Any]) -> str:
    """The GPU that a result was measured on, or the CPU."""
    machine = result["machine"]
    return str(machine["gpus"][0]) if machine["gpus"] else f"{machine['cpu']}, {machine['cores']} cores"


def _rows(result: dict[str, Any], name: str) -> list[dict[str, Any]]:
    return [
        row for group in result["result"]["groups"] if group["name"] == name for row in group["rows"] if "fps" in row
    ]


def _bars(axes: Any, bars: Sequence[tuple[str, dict[str, Any]]], *, several: bool) -> None:
    """Median rates, the range of rounds as a line on each bar."""
    ordered = sorted(bars, key=lambda bar: bar[1]["fps"]["median"])
    labels = row_names([row for _, row in ordered])
    names = [f"{machine}: {label}" if several else label for (machine, _), label in zip(ordered, labels, strict=True)]
    rates = [row["fps"]["median"] for _, row in ordered]
    spread = [
        [row["fps"]["median"] - row["fps"]["min"] for _, row in ordered],
        [row["fps"]["max"] - row["fps"]["median"] for _, row in ordered],
    ]
    colors = [BLUE if row["contestant"] == OURS else GRAY for _, row in ordered]
    places = range(len(names))  # not the names: equal ones, of two results from one machine, would share a bar
    axes.barh(places, rates, tick_label=names, color=colors, xerr=spread, error_kw={"ecolor": "#444444", "capsize": 3})
    for index, value in enumerate(rates):
        axes.annotate(rate(value), (value, index), (6, 9), textcoords="offset points", va="center", fontsize=9)
    axes.set_xlim(0, max(max(rates) * 1.15, *(row["fps"]["max"] * 1.03 for _, row in ordered)))
    cases = {f"{Path(row['model']).stem}, {row['size'][0]}×{row['size'][1]}" for _, row in ordered}
    title = cases.pop() if len(cases) == 1 else "models and sizes as named"
    axes.set_title(title if several else f"{title}\n{bars[0][0]}")
    axes.set_xlabel("frames per second")
    axes.spines[["top", "right"]].set_visible(False)


def _curve(axes: Any, rows: Sequence[dict[str, Any]]) -> None:
    """Seconds a frame over its pixels, with the line of equal cost for every pixel through the largest frame."""
    pixels = [row["size"][0] * row["size"][1] / 1e6 for row in rows]
    seconds = [1 / row["fps"]["median"] for row in rows]
    axes.loglog(pixels, seconds, "o-", color=BLUE, label="vsfdatrd")
    cost = seconds[-1] / pixels[-1]
    axes.loglog(pixels, [cost * p for p in pixels], "--", color=GRAY, label=f"{cost:.3g} s per million pixels")
    for p, s, row in zip(pixels, seconds, rows, strict=True):
        axes.annotate(f"{row['size'][1]}", (p, s), (4, -12), textcoords="offset points", fontsize=9)
    axes.set_title("from 120 to 1080 lines")
    axes.set_xlabel("million pixels in")
    axes.set_ylabel("seconds per frame")
    axes.legend(frameon=False, loc="upper left")  # the line rises; "best" is slow and warns of it
    axes.spines[["top", "right"]].set_visible(False)
