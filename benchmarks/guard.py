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

from benchmarks.report import save
from benchmarks.speed.cases import OURS, Case, Group
from benchmarks.speed.race import Settings, race, steps
from benchmarks.speed.table import rate
from benchmarks.weights import weights_file

ROOT = Path(__file__).resolve().parents[1]


def extract_source(commit: str | None, folder: Path) -> Path:
    """Extract the files of a commit into a folder; None means the checkout. Raises SystemExit for an unknown commit."""
    if commit is None:
        return ROOT
    done = subprocess.run(["git", "-C", str(ROOT), "archive", commit], capture_output=True, check=False)
    if done.returncode:
        raise SystemExit(f"{commit} is not a commit of this repository: {done.stderr.decode().strip()}")
    with tarfile.open(fileobj=io.BytesIO(done.stdout)) as archive:
        archive.extractall(folder, filter="data")
    return folder


def create_environment(source: Path, folder: Path) -> Path:
    """Create an environment with vsfdatrd from a source tree and all other packages of this environment.

    VapourSynth loads the plugins inside its own package, so that package is copied, without our plugin.

    Returns:
        The path of its Python interpreter.
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
        raise SystemExit(f"{source.name} cannot be installed: {done.stderr.strip()[-2000:]}")
    return python


def main() -> int:
    """Measure; see the module's docstring."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.guard", description=__doc__.splitlines()[0])
    parser.add_argument("base")
    parser.add_argument("head", nargs="?")
    parser.add_argument("--model", default="medium")
    parser.add_argument("--backend", default="auto")
    parser.add_argument("--size", default="240x240")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--bound", type=float, default=0.97, help="lowest ratio of frames a second that passes")
    parser.add_argument("--out", metavar="NAME")
    a = parser.parse_args()
    width, height = map(int, a.size.split("x"))
    with tempfile.TemporaryDirectory(prefix="vsfdatrd-guard-") as temporary:
        folder = Path(temporary)
        (folder / "lib").mkdir()
        (folder / "lib" / "benchmarks").symlink_to(ROOT / "benchmarks")  # the same for both commits
        weights, _ = weights_file(a.model, folder)
        pythons = {}
        for label, commit in (("base", a.base), ("head", a.head)):
            print(f"installing {label} ({commit or 'the checkout'})", file=sys.stderr)
            pythons[label] = create_environment(extract_source(commit, folder / f"{label}-source"), folder / label)
        cases = tuple(Case(OURS, str(weights), (width, height), backend=a.backend) for _ in pythons)
        group = Group("guard", f"{a.model}, {a.size}", cases, a.rounds)
        settings = Settings(a.seconds, folder, pythons=tuple(pythons.values()), path=folder / "lib")
        with tqdm(total=steps(group), leave=False) as bar:
            base, head = race(group, settings, bar.set_description_str, bar.update)
    for name, row in (("base", base), ("head", head)):
        if "fps" not in row:
            raise SystemExit(f"{name} could not be measured: {row.get('missing') or row.get('error')}")
        fps = row["fps"]
        print(f"{name}: {rate(fps['median'])} fps ({rate(fps['min'])} to {rate(fps['max'])})")
    ratio = head["fps"]["median"] / base["fps"]["median"]
    if a.out:
        asked = {
            "commits": [a.base, a.head or "checkout"],
            "model": a.model,
            "backend": a.backend,
            "size": [width, height],
            "rounds": a.rounds,
        }
        save(a.out, asked | {"base": base["fps"], "head": head["fps"], "ratio": ratio})
    print(f"ratio {ratio:.3f}, {'passes' if ratio >= a.bound else 'is below'} the bound of {a.bound}")
    return int(ratio < a.bound)


if __name__ == "__main__":
    sys.exit(main())
