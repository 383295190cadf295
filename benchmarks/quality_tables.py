"""Fill in the quality tables of the documentation and the model cards from benchmarks/results/quality.json.

    python -m benchmarks.quality_tables

A table stands below a comment that says what it contains, and ends at the next empty line:

    <!-- quality means; methods: Lanczos, medium; sets: dvd, made_dvd; measures: psnr_y_db, ssimulacra2 -->
    <!-- quality differences; of: large; from: medium, small; sets: dvd, made_dvd; measures: psnr_y_db -->
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks import report
from benchmarks.command_line import run
from benchmarks.errors import BenchmarkError
from benchmarks.quality_spread import difference, spread

ROOT = Path(__file__).resolve().parents[1]
SETS = {
    "clean": "clean",
    "dvd": "DVD, simple degradation",
    "laserdisc": "LaserDisc, simple degradation",
    "made_dvd": "DVD, full degradation",
    "made_laserdisc": "LaserDisc, full degradation",
    "film": "film of 1936",
}
"""Titles of the sets of sources."""
MEASURES = {
    "psnr_y_db": ("PSNR-Y", 2),
    "ssimulacra2": ("SSIMULACRA2", 1),
    "chroma_error_steps": ("chroma error", 2),
    "sharpness": ("line sharpness", 2),
    "flat_noise_steps": ("noise in flat areas", 2),
    "flicker_steps": ("flicker of luma", 2),
    "chroma_flicker_steps": ("of chroma", 2),
}
"""Title and number of decimals of each measure."""

_COMMENT = re.compile(r"(?m)^<!-- quality (means|differences); (.*) -->\n(?:\|.*\n)*")


def fill_in(text: str, methods: Mapping[str, Any]) -> str:
    """Replace the tables of a document.

    Args:
        text: The document, as Markdown.
        methods: Values by method, set and measure, as in quality.json.

    Returns:
        The document with new tables.

    Raises:
        BenchmarkError: A table names a method, set or measure that the results lack.
    """

    def replace(found: re.Match[str]) -> str:
        kind, options = found.groups()
        fields = {
            key: [word.strip() for word in words.split(",")]
            for key, _, words in (option.partition(":") for option in options.split("; "))
        }
        try:
            rows = _means(methods, **fields) if kind == "means" else _differences(methods, **_renamed(fields))
        except (KeyError, TypeError) as error:
            raise BenchmarkError(f"the table <!-- quality {kind}; {options} --> is not possible: {error}") from error
        lines = [f"| {' | '.join(row)} |\n" for row in rows]
        return f"<!-- quality {kind}; {options} -->\n{lines[0]}|{'---|' * len(rows[0])}\n{''.join(lines[1:])}"

    return _COMMENT.sub(replace, text)


def documents() -> list[Path]:
    """Return the documents of the repository that contain such tables."""
    files = [*ROOT.glob("docs/*.md"), *ROOT.glob("models/*.md")]
    return [file for file in sorted(files) if _COMMENT.search(file.read_text(encoding="utf-8"))]


def _renamed(fields: dict[str, list[str]]) -> dict[str, list[str]]:
    return {"reference" if key == "of" else "others" if key == "from" else key: words for key, words in fields.items()}


def _means(
    results: Mapping[str, Any], methods: Sequence[str], sets: Sequence[str], measures: Sequence[str]
) -> list[list[str]]:
    """Return rows of methods and columns of sets; a cell has the means of all measures."""
    rows = [[" / ".join(MEASURES[measure][0] for measure in measures), *(SETS[name] for name in sets)]]
    for method in methods:
        cells = [
            " / ".join(f"{results[method][name][key]['mean']:.{MEASURES[key][1]}f}" for key in measures)
            for name in sets
        ]
        rows.append([_title(method), *cells])
    return rows


def _differences(
    results: Mapping[str, Any],
    reference: Sequence[str],
    others: Sequence[str],
    sets: Sequence[str],
    measures: Sequence[str],
) -> list[list[str]]:
    """Return mean ± standard error (wins) of one method minus others: rows of sets, or of methods if there are several.

    Minus zero is written as zero.
    """
    own = results[reference[0]]

    def cell(other: str, name: str, key: str) -> str:
        found = difference(own[name][key]["pictures"], results[other][name][key]["pictures"], key)
        return re.sub(r"^-(0\.0+ )", r"+\1", spread(found, MEASURES[key][1]))

    if len(others) == 1:
        heads = [f"{_title(reference[0])} minus {_title(others[0])}", *(MEASURES[key][0] for key in measures)]
        return [heads, *([SETS[name], *(cell(others[0], name, key) for key in measures)] for name in sets)]
    heads = [f"{SETS[name]}: {MEASURES[key][0]}" for name in sets for key in measures]
    rows = [[_title(other), *(cell(other, name, key) for name in sets for key in measures)] for other in others]
    return [[f"{_title(reference[0])} minus", *heads], *rows]


def _title(method: str) -> str:
    name, _, chroma_filter = method.partition("+")
    ours = name in ("small", "medium", "large", "ld", "clean")
    return (f"`{name}`" if ours else name) + (f", `{chroma_filter}`" if chroma_filter else "")


def main() -> int:
    """Run the command; see the docstring of the module."""
    methods = json.loads((report.RESULTS / "quality.json").read_text(encoding="utf-8"))["result"]["methods"]
    for file in documents():
        file.write_text(fill_in(file.read_text(encoding="utf-8"), methods), encoding="utf-8")
        print(file.relative_to(ROOT))
    return 0


if __name__ == "__main__":
    run(main)
