"""Measure the speed of upscaling on this machine, compared with other software, in one run.

python -m benchmarks [--quick | --full]          measure; prints tables, writes JSON and a PNG
python -m benchmarks --compare OLD.json NEW.json  ratios between two results
python -m benchmarks --chart A.json B.json ...    several machines in one picture
python -m benchmarks --profile                    time per step and layer of a frame
"""

import argparse
import json
import re
import tempfile
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from benchmarks.command_line import frame_size, positive_float, positive_int, result_name, run
from benchmarks.errors import BenchmarkError
from benchmarks.report import RESULTS, describe_machine, save
from benchmarks.speed.cases import GROUPS, Extent, Group, groups
from benchmarks.speed.peers import PEERS
from benchmarks.speed.plot import draw, machine_name
from benchmarks.speed.race import Settings, race, steps
from benchmarks.speed.table import compared, table
from benchmarks.weights import weights_file
from vsfdatrd.backends.gpu.devices import list_gpus
from vsfdatrd.backends.selection import import_backend, unavailable_reasons
from vsfdatrd.checkpoint import open_checkpoint


def measure(a: argparse.Namespace) -> int:
    """Run the groups, print and save."""
    extent: Extent = "quick" if a.quick else "full" if a.full else "standard"
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="vsfdatrd-bench-") as temporary:
        folder = Path(temporary)
        checkpoint = open_checkpoint(weights_file(a.model, folder)[0])
        kinds = [
            (name, import_backend(name).precisions(checkpoint))
            for name, reason in unavailable_reasons().items()
            if reason is None
        ]
        expected = [name for name in PEERS if not a.only or name in a.only]
        plan = list(
            groups(
                extent,
                gpu=bool(list_gpus()),
                backends=kinds,
                peers=expected,
                model=a.model,
                size=a.size,
                rounds=a.rounds,
                clip=a.clip,
            )
        )
        plan = [group for group in plan if not a.groups or group.name in a.groups]
        if not plan:
            raise BenchmarkError(f"--groups {' '.join(a.groups)}: nothing of that is measured here; most need --full")
        settings = Settings(a.seconds or (1 if a.quick else 5), folder)
        name = a.out or f"speed_{_slug()}{'_quick' if a.quick else ''}"
        result: dict[str, Any] = {"extent": extent, "seconds_per_turn": settings.seconds, "groups": []}
        print(_heading(), flush=True)
        for group in plan:
            rows = _run_group(group, settings)
            result["groups"].append({"name": group.name, "title": group.title, "rounds": group.rounds, "rows": rows})
            print(f"\n### {group.title}\n\n{table(rows)}", flush=True)
            result["minutes"] = round((time.monotonic() - begun) / 60, 1)
            save(name, result, quiet=True)
    written = save(name, result, quiet=True)
    print(f"\n{written} after {result['minutes']} minutes")
    _draw([str(written)], written.with_suffix(".png"))
    return 0


def _run_group(group: Group, settings: Settings) -> list[dict[str, Any]]:
    with tqdm(total=steps(group), unit="step", leave=False, bar_format="{l_bar}{bar}| {elapsed} {desc}") as bar:
        return race(group, settings, bar.set_description_str, bar.update)


def _heading() -> str:
    known = describe_machine()
    where = (
        ", ".join(known["gpus"]) or f"{known['cpu']} ({known['cores']} cores, {', '.join(known['instruction_sets'])})"
    )
    versions = ", ".join(f"{name} {version}" for name, version in known["versions"].items())
    return f"{where}; {known['memory_gib']} GiB; {known['date']}\n{versions}"


def _slug() -> str:
    known = {"machine": describe_machine()}
    return re.sub(r"[^a-z0-9]+", "_", machine_name(known).lower()).strip("_")


def _load_results(file: str) -> dict[str, Any]:
    try:
        result: dict[str, Any] = json.loads(Path(file).read_text(encoding="utf-8"))
        if "groups" in result["result"] and "machine" in result:
            return result
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BenchmarkError(f"{file} cannot be read as a result: {error}") from error
    raise BenchmarkError(f"{file} is not a result of python -m benchmarks")


def _draw(files: list[str], picture: Path) -> None:
    """Draw results and print the picture's name, or why there is no picture. Raises BenchmarkError for other files."""
    results = [_load_results(file) for file in files]
    try:
        draw(results, picture)
    except ImportError:
        print("no picture: matplotlib is not installed; pip install matplotlib")
    except ValueError as error:
        print(f"no picture: {error}")
    else:
        print(picture)


def main() -> int:
    """Run the command; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="two minutes; without a GPU at 240×240")
    extent.add_argument("--full", action="store_true", help="also engines, streams, sizes and a sweep of sizes")
    parser.add_argument("--model", default="medium", help="a name of the catalog or a weights file")
    parser.add_argument("--size", type=frame_size, help="of the headline, such as 720x540")
    parser.add_argument("--rounds", type=positive_int, help="turns of every contestant that count (5, quick 3)")
    parser.add_argument("--seconds", type=positive_float, help="length of a turn, if a frame takes less (5, quick 1)")
    parser.add_argument("--only", nargs="+", metavar="PEER", choices=PEERS, help=f"these of {', '.join(PEERS)}")
    parser.add_argument("--groups", nargs="+", metavar="GROUP", choices=GROUPS, help=f"these of {', '.join(GROUPS)}")
    parser.add_argument("--clip", help="a video file, to see what reuse gains on it (with --full)")
    parser.add_argument("--out", type=result_name, help=f"name of the result in {RESULTS.name}/, or its absolute path")
    parser.add_argument("--compare", nargs=2, metavar=("OLD", "NEW"), help="ratios between two results")
    parser.add_argument("--chart", nargs="+", metavar="FILE", help="several results in one picture, chart.png")
    parser.add_argument("--profile", action="store_true", help="where a frame's time goes")
    a = parser.parse_args()
    if a.clip and not a.full:
        parser.error("--clip is measured with --full only")
    if a.compare:
        old, new = (_load_results(file)["result"] for file in a.compare)
        print(compared(old, new))
        return 0
    if a.chart:
        _draw(a.chart, Path("chart.png"))
        return 0
    if a.profile:
        from benchmarks.frame_profile import report

        return report(a.model, a.size, a.out)
    return measure(a)


if __name__ == "__main__":
    run(main)
