"""Compare the picture quality of models and other methods on a folder of pictures.

    python -m benchmarks.quality FOLDER [--models medium medium+luma_guided path.safetensors ...] [--peers Lanczos ...]
        [--sets clean dvd ...] [--film FILE] [--checks] [--sheets FOLDER] [--cache FOLDER] [--out NAME]

None of our models may have been trained on the pictures.

There are three sets of sources: the busiest 480×400 pixels of each picture, halved and degraded in three fixed ways
(`quality_degradations.py`: clean, dvd, laserdisc); faces and lettering at the scale of a film, through everything that
a DVD or a LaserDisc does (`quality_discs.py`: made_dvd, made_laserdisc); and real cels of a film (film). Every method
doubles the same 8-bit RGB. `quality_measures.py` defines the measures, `quality_checks.py` what must never happen
(--checks).

The tables show means over the pictures, and the difference of the first model from every other method: mean ± standard
error (pictures on which it is better / pictures). benchmarks/results/NAME.json has every picture.
"""

import argparse
import hashlib
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

import vsfdatrd
from benchmarks import quality_sheets, report
from benchmarks.command_line import positive_int, result_name, run
from benchmarks.errors import BenchmarkError, Missing
from benchmarks.quality_cache import Cache
from benchmarks.quality_checks import run_checks
from benchmarks.quality_degradations import DEGRADATIONS, read_truths
from benchmarks.quality_discs import HELD, Sample, dvds, film, laserdiscs
from benchmarks.quality_measures import HELD_MEASURES, MEASURES
from benchmarks.quality_methods import PEERS, Method, Picture, Result, network
from benchmarks.quality_spread import differences, spread
from vsfdatrd.options import CHROMA_FILTERS
from vsfdatrd.weights.catalog import resolve_model
from vsfdatrd.weights.files import sha256

log = logging.getLogger(__name__)

type Row = dict[str, Any]
type Samples = dict[str, dict[str, Sample]]
"""Samples by kind and picture."""
type Shown = dict[tuple[str, str, str], Picture]
"""First results by method, kind and picture."""

KINDS = (*DEGRADATIONS, "made_dvd", "made_laserdisc", "film")
FILM = Path(__file__).resolve().parents[2] / "shared" / "data" / "clips" / "popeye_hd_1440x1074_24p.mkv"
COLUMNS = {
    "psnr_y_db": "PSNR-Y",
    "chroma_error_steps": "chroma error",
    "ssim": "SSIM",
    "ssimulacra2": "SSIMULACRA2",
    "ssimulacra2_vszip": "by vszip",
    "xpsnr_y_db": "XPSNR-Y",
    "sharpness": "sharpness",
    "halo_steps": "halo",
    "flat_noise_steps": "flat noise",
    "flicker_steps": "flicker",
    "chroma_flicker_steps": "chroma flicker",
}
COMPARED = ("psnr_y_db", "chroma_error_steps", "ssimulacra2", "ssimulacra2_vszip", "sharpness", "flat_noise_steps")
"""Measures whose differences are shown."""


@dataclass(frozen=True, slots=True)
class NamedMethod:
    """A method with the name of its row."""

    identity: str
    """What its results depend on: versions or source text, and weights."""
    method: Method


def create_methods(models: list[str], peers: list[str]) -> dict[str, NamedMethod | str]:
    """Create every method.

    Args:
        models: Names of the catalog or weights files, which ``+luma_guided`` may follow.
        peers: Names of `PEERS`.

    Returns:
        Methods by the name of their row; a peer that cannot run here is replaced by the reason.

    Raises:
        BenchmarkError: Two models would have the same row, or a chroma filter is unknown.
        FdatrdError: A model is unknown.
    """
    result: dict[str, NamedMethod | str] = {}
    for model in models:
        name, _, chroma_filter = model.partition("+")
        if chroma_filter not in ("", *CHROMA_FILTERS):
            raise BenchmarkError(f"{model}: there is no chroma filter {chroma_filter}; {', '.join(CHROMA_FILTERS)} are")
        weights = sha256(resolve_model(name))
        row = Path(name).name.removesuffix(".safetensors").removesuffix(".pth") + (
            f"+{chroma_filter}" if chroma_filter else ""
        )
        if row in result:
            raise BenchmarkError(f"two models are named {row}; rename one of the files")
        identity = f"{weights} {chroma_filter} {_digest_of_package()}"
        result[row] = NamedMethod(identity, network(name, chroma_filter or "none"))
    for peer in peers:
        try:
            result[peer] = NamedMethod(
                " ".join([peer, *map(_version, ("VapourSynth", "ncnn", "torch"))]), PEERS[peer]()
            )
        except Missing as missing:
            result[peer] = str(missing)
    return result


def _digest_of_package() -> str:
    """A digest of the plugin's source text: after a change, cached results of our networks are computed again."""
    folder = Path(vsfdatrd.__file__).parent
    files = sorted(file for file in folder.rglob("*") if file.suffix in (".py", ".c", ".h"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def create_samples(folder: Path, kinds: list[str], film_file: Path, limit: int | None = None) -> Samples:
    """Create the sources of all methods.

    Args:
        folder: Of the pictures.
        kinds: Some of `KINDS`. One that cannot be created here is omitted with a warning.
        film_file: The film of the kind of that name.
        limit: Number of pictures, the first by name; None for all.

    Raises:
        BenchmarkError: The folder holds no pictures, or no kind can be created.
    """
    result: Samples = {}
    degradations = {kind: degrade for kind, degrade in DEGRADATIONS.items() if kind in kinds}
    truths = read_truths(folder, limit) if degradations else {}
    for kind, degrade in degradations.items():
        frames = range(HELD if kind == "laserdisc" else 1)
        result[kind] = {
            name: Sample(truth, [degrade(truth, name, frame) for frame in frames]) for name, truth in truths.items()
        }
    makers: dict[str, Callable[[], dict[str, Sample]]] = {
        "made_dvd": lambda: dvds(folder, limit),
        "made_laserdisc": lambda: laserdiscs(folder, limit),
        "film": lambda: film(film_file, limit),
    }
    for kind, make in makers.items():
        if kind in kinds:
            try:
                result[kind] = make()
            except Missing as missing:
                log.warning("%s is left out: %s", kind, missing)
    if not any(result.values()):
        raise BenchmarkError(f"there is nothing to measure of {', '.join(kinds)}")
    return {kind: result[kind] for kind in KINDS if result.get(kind)}


def measure(
    named: NamedMethod, given: Samples, cache: Cache, bar: Any = None
) -> tuple[Row, dict[tuple[str, str], Result]]:
    """Measure one method.

    Args:
        named: The method.
        given: The sources.
        cache: Of results and measures.
        bar: A progress bar of frames.

    Returns:
        Values by kind and measure, as mean and per picture; and the first result of each kind and picture.

    Raises:
        BenchmarkError: The method does not double pictures.
    """
    row: Row = {}
    firsts: dict[tuple[str, str], Result] = {}
    for kind, pictures in given.items():
        held = any(len(sample.sources) > 1 for sample in pictures.values())
        expected = [*MEASURES, *(HELD_MEASURES if held else ())]
        row[kind] = {key: {"mean": None, "pictures": {}} for key in expected}
        results = _results(named, [source for sample in pictures.values() for source in sample.sources], cache)
        for name, sample in pictures.items():
            frames = [next(results) for _ in sample.sources]
            if frames[0].shape != sample.truth.shape:
                raise BenchmarkError(
                    f"a result is {frames[0].shape}, its truth {sample.truth.shape}: the model is not a doubler"
                )
            firsts[kind, name] = frames[0]
            known = named.identity, np.stack(sample.sources), sample.truth
            numbers = cache.numbers(*known)
            if not set(expected) <= set(numbers):
                truth = sample.truth / 255
                numbers = {key: _number(function(truth, frames[0])) for key, function in MEASURES.items()}
                if held:
                    numbers |= {key: _number(function(frames)) for key, function in HELD_MEASURES.items()}
                cache.keep_numbers(*known, numbers)
            for key in expected:
                row[kind][key]["pictures"][name] = numbers[key]
            if bar is not None:
                bar.update(len(frames))
        for entry in row[kind].values():
            values = [value for value in entry["pictures"].values() if value is not None]
            entry["mean"] = _number(float(np.mean(values))) if values else None
    return row, firsts


def _results(named: NamedMethod, sources: list[Picture], cache: Cache) -> Iterator[Result]:
    """Compute a method's results for pictures of one size; those that are not cached are computed in one batch."""
    known = [cache.result(named.identity, source) for source in sources]
    lacking = [source for source, result in zip(sources, known, strict=True) if result is None]
    made = iter(named.method(lacking)) if lacking else iter(())
    for source, result in zip(sources, known, strict=True):
        yield cache.keep(named.identity, source, next(made)) if result is None else result


def _number(value: float) -> float | None:
    """Return None for NaN, which JSON does not have."""
    return round(value, 4) if math.isfinite(value) else None


def format_tables(rows: dict[str, Row | str], kinds: list[str]) -> str:
    """Format means as Markdown, one table per kind, with the differences between the first model and the others."""
    whole = [name for name, row in rows.items() if not isinstance(row, str)]
    result = differences(rows, whole[0]) if whole else {}
    lines = []
    for kind in kinds:
        first = rows[whole[0]] if whole else {}
        measured = {} if isinstance(first, str) else first.get(kind, {})
        columns = {key: title for key, title in COLUMNS.items() if key in measured or key in MEASURES}
        lines += [f"\n{kind}\n", f"| | {' | '.join(columns.values())} |", "|---|" + "---|" * len(columns)]
        for name, row in rows.items():
            cells = [row] if isinstance(row, str) else [_cell(key, row[kind][key]["mean"]) for key in columns]
            lines.append(f"| {name} | {' | '.join(cells)} |")
        if result:
            titles = " | ".join(COLUMNS[key] for key in COMPARED)
            lines += [f"\n| {whole[0]} minus | {titles} |", "|---|" + "---|" * len(COMPARED)]
            for name, kinds_of in result.items():
                lines.append(f"| {name} | {' | '.join(spread(kinds_of[kind].get(key)) for key in COMPARED)} |")
    return "\n".join(lines)


def _cell(key: str, value: float | None) -> str:
    return "–" if value is None else f"{value:.{4 if key == 'ssim' else 1 if key.startswith('ssimulacra2') else 2}f}"


def main(arguments: list[str] | None = None) -> int:
    """Run the command; see the docstring of the module."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--models", nargs="*", default=["medium"], help="names of the catalog, or files; +luma_guided")
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS), metavar="PEER")
    parser.add_argument("--sets", nargs="+", default=list(KINDS), choices=KINDS, metavar="SET", help=", ".join(KINDS))
    parser.add_argument("--film", type=Path, default=FILM, help="the film of the set of that name")
    parser.add_argument("--sheets", type=Path, help="also draw crops of all results side by side, into this folder")
    parser.add_argument("--cache", type=Path, help="folder of results that need not be computed again")
    parser.add_argument("--checks", action="store_true", help="also check colors, grid, held cels and place")
    parser.add_argument("--limit", type=positive_int, metavar="N", help="use only the first N pictures, sorted by name")
    parser.add_argument("--out", type=result_name, default="quality", help="name of the result (default: %(default)s)")
    a = parser.parse_args(arguments)
    results = create_methods(a.models, a.peers)
    given = create_samples(a.folder, a.sets, a.film, a.limit)
    rows: dict[str, Row | str] = {}
    checks: dict[str, Any] = {}
    shown: Shown = {}
    frames = sum(len(sample.sources) for pictures in given.values() for sample in pictures.values())
    with tqdm(total=frames * len(results), unit="frame", dynamic_ncols=True) as bar:
        for name, named in results.items():
            bar.set_description(name)
            if isinstance(named, str):
                rows[name] = named
                bar.update(frames)
                continue
            rows[name], firsts = measure(named, given, Cache(a.cache), bar)
            for (kind, picture), first in firsts.items():
                shown[name, kind, picture] = np.rint(first * 255).astype(np.uint8)
            if a.checks:
                checks[name] = run_checks(named.method)
    print(format_tables(rows, list(given)))
    for name, outcomes in checks.items():
        for check, outcome in outcomes.items():
            verdict = "passed" if outcome["passed"] else "FAILED"
            print(
                f"{name:<16} {check:<14} {verdict}  {outcome['worst']:.3f} {outcome['unit']}, limit {outcome['limit']}"
            )
    whole = [name for name, row in rows.items() if not isinstance(row, str)]
    if a.sheets:
        for file in quality_sheets.write(given, shown, whole, a.sheets):
            print(file)
    result: dict[str, Any] = {
        "pictures": {kind: list(pictures) for kind, pictures in given.items()},
        "methods": {name: {"missing": row} if isinstance(row, str) else row for name, row in rows.items()},
        "differences": {"of": whole[0], "from": differences(rows, whole[0])} if whole else {},
    }
    if checks:
        result["checks"] = checks
    report.save(a.out, result)
    return 0


if __name__ == "__main__":
    run(main)
