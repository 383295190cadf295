"""Check whether a change made upscaling slower: measure two commits in turns, in one run, on the same weights.

    python -m benchmarks.guard BASE [HEAD] [--backend auto] [--size 240x240] [--rounds 7] [--bound 0.97] [--out NAME]

Each commit is installed into its own environment, which shares every other package with this one, and is used in the
same way as by scripts. Unless a commit is given, HEAD is the checkout including uncommitted changes. The exit code is 1
if the ratio of the medians is below the bound. With --out, the rates are saved as results/NAME.json.
"""

import argparse
import io
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from pathlib import Path

from tqdm import tqdm

from benchmarks.command_line import frame_size, positive_float, positive_int, result_name, run
from benchmarks.errors import BenchmarkError
from benchmarks.report import save
from benchmarks.speed.cases import OURS, Case, Group
from benchmarks.speed.race import Settings, race, steps
from benchmarks.speed.table import rate
from benchmarks.weights import weights_file

ROOT = Path(__file__).resolve().parents[1]


def extract_source(commit: str | None, folder: Path) -> Path:
    """Extract the files of a commit.

    Args:
        commit: The commit; None means the checkout, of which nothing is extracted.
        folder: Where its files go.

    Returns:
        The folder of the source tree.

    Raises:
        BenchmarkError: The commit is unknown, or there is no git.
    """
    if commit is None:
        return ROOT
    try:
        done = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=False)
    except OSError as error:
        raise BenchmarkError(f"git, which extracts {commit}, does not start: {error}") from error
    if done.returncode:
        raise BenchmarkError(f"{commit} is not a commit of this repository: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def create_environment(source: Path, folder: Path) -> Path:
    """Create an environment with vsfdatrd from a source tree and all other packages of this environment.

    VapourSynth loads the plugins inside its own package, so that package is copied, without our plugin.

    Args:
        source: The source tree.
        folder: Of the environment.

    Returns:
        The path of its Python interpreter.

    Raises:
        BenchmarkError: The source tree cannot be installed.
    """
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    ours = Path(sysconfig.get_path("purelib"))
    theirs = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    for entry in ours.iterdir():
        if entry.name == "vapoursynth":
            shutil.copytree(entry, theirs / entry.name, ignore=shutil.ignore_patterns("vsfdatrd*"), symlinks=True)
        elif not entry.name.lower().lstrip("_").startswith(("vsfdatrd", "__pycache__")):
            (theirs / entry.name).symlink_to(entry)
    install = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--no-deps"]
    done = subprocess.run(
        [*install, "--no-build-isolation", str(source)], capture_output=True, text=True, check=False, cwd=folder
    )
    if done.returncode:
        raise BenchmarkError(f"{source.name} cannot be installed: {done.stderr.strip()[-2000:]}")
    return python


def main() -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__.splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("head", nargs="?")
    parser.add_argument("--model", default="medium")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--size", type=frame_size, default=(240, 240))
    parser.add_argument("--rounds", type=positive_int, default=7)
    parser.add_argument("--seconds", type=positive_float, default=3.0)
    parser.add_argument(
        "--bound", type=positive_float, default=0.97, help="lowest ratio of frames a second that passes"
    )
    parser.add_argument("--out", metavar="NAME", type=result_name)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="vsfdatrd-guard-") as temporary:
        folder = Path(temporary)
        (folder / "lib").mkdir()
        (folder / "lib" / "benchmarks").symlink_to(ROOT / "benchmarks")  # the same for both commits
        weights, _ = weights_file(a.model, folder)
        pythons = {}
        for label, commit in (("base", a.base), ("head", a.head)):
            print(f"installing {label} ({commit or 'the checkout'})", file=sys.stderr)
            pythons[label] = create_environment(extract_source(commit, folder / f"{label}-source"), folder / label)
        cases = tuple(Case(OURS, str(weights), a.size, backend=a.backend) for _ in pythons)
        group = Group("guard", f"{a.model}, {a.size[0]}×{a.size[1]}", cases, a.rounds)
        settings = Settings(a.seconds, folder, pythons=tuple(pythons.values()), path=folder / "lib")
        with tqdm(total=steps(group), leave=False) as bar:
            base, head = race(group, settings, bar.set_description_str, bar.update)
    for name, row in (("base", base), ("head", head)):
        if "fps" not in row:
            raise BenchmarkError(f"{name} could not be measured: {row.get('missing') or row.get('error')}")
        fps = row["fps"]
        print(f"{name}: {rate(fps['median'])} fps ({rate(fps['min'])} to {rate(fps['max'])})")
    ratio = head["fps"]["median"] / base["fps"]["median"]
    if a.out:
        asked = {
            "commits": [a.base, a.head or "checkout"],
            "model": a.model,
            "backend": a.backend,
            "size": a.size,
            "rounds": a.rounds,
        }
        save(a.out, asked | {"base": base["fps"], "head": head["fps"], "ratio": ratio})
    print(f"ratio {ratio:.3f}, {'passes' if ratio >= a.bound else 'is below'} the bound of {a.bound}")
    return int(ratio < a.bound)


if __name__ == "__main__":
    run(main)
