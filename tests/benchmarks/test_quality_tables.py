"""Quality tables of the documentation: they hold what was measured."""

import json
from typing import Any

import pytest

from benchmarks import report
from benchmarks.errors import BenchmarkError
from benchmarks.quality_tables import documents, fill_in


def values(*numbers: float) -> dict[str, Any]:
    return {"mean": sum(numbers) / len(numbers), "pictures": dict(zip("abc", numbers, strict=False))}


METHODS = {
    "medium": {kind: {"psnr_y_db": values(30, 32), "ssimulacra2": values(40, 41)} for kind in ("dvd", "clean")},
    "large+luma_guided": {
        "dvd": {"psnr_y_db": values(30.5, 32.1), "ssimulacra2": values(40, 41)},
        "clean": {"psnr_y_db": values(31, 32), "ssimulacra2": values(39, 41)},
    },
    "Lanczos": {kind: {"psnr_y_db": values(28, 29), "ssimulacra2": values(30, 31)} for kind in ("dvd", "clean")},
}
MEANS = "<!-- quality means; methods: Lanczos, large+luma_guided; sets: dvd; measures: psnr_y_db, ssimulacra2 -->"
ONE = "<!-- quality differences; of: large+luma_guided; from: medium; sets: dvd, clean; measures: psnr_y_db -->"
SEVERAL = "<!-- quality differences; of: medium; from: Lanczos, large+luma_guided; sets: dvd; measures: psnr_y_db -->"


def test_a_table_of_means() -> None:
    expected = """\
| PSNR-Y / SSIMULACRA2 | DVD, simple degradation |
|---|---|
| Lanczos | 28.50 / 30.5 |
| `large`, `luma_guided` | 31.30 / 40.5 |
"""
    assert fill_in(f"before\n\n{MEANS}\n\nafter\n", METHODS) == f"before\n\n{MEANS}\n{expected}\nafter\n"
    assert fill_in(f"{MEANS}\n| old |\n|---|\n| table |\n\nafter\n", METHODS) == f"{MEANS}\n{expected}\nafter\n"


def test_tables_of_differences() -> None:
    assert fill_in(f"{ONE}\n", METHODS).splitlines()[1:] == [
        "| `large`, `luma_guided` minus `medium` | PSNR-Y |",
        "|---|---|",
        "| DVD, simple degradation | +0.30 ± 0.20 (2/2) |",
        "| clean | +0.50 ± 0.50 (1/2) |",
    ]
    assert fill_in(f"{SEVERAL}\n", METHODS).splitlines()[1:] == [
        "| `medium` minus | DVD, simple degradation: PSNR-Y |",
        "|---|---|",
        "| Lanczos | +2.50 ± 0.50 (2/2) |",
        "| `large`, `luma_guided` | -0.30 ± 0.20 (0/2) |",
    ]


@pytest.mark.parametrize("wrong", ["methods: unknown", "sets: film", "measures: ssim", "shape: 2"])
def test_what_was_not_measured_is_a_sentence(wrong: str) -> None:
    fields = {"methods": "methods: medium", "sets": "sets: dvd", "measures": "measures: psnr_y_db"}
    fields[wrong.partition(":")[0]] = wrong
    with pytest.raises(BenchmarkError, match=r"the table <!-- quality means; .* is not possible"):
        fill_in(f"<!-- quality means; {'; '.join(fields.values())} -->\n", METHODS)


def test_the_documentation_has_the_numbers_that_were_measured() -> None:
    methods = json.loads((report.RESULTS / "quality.json").read_text(encoding="utf-8"))["result"]["methods"]
    names = {file.name for file in documents()}
    assert names >= {"measured.md", "small.md", "medium.md", "large.md", "ld.md", "clean.md"}
    for file in documents():
        text = file.read_text(encoding="utf-8")
        assert fill_in(text, methods) == text, f"{file.name}: run python -m benchmarks.quality_tables"
