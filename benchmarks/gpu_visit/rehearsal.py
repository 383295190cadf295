"""The whole visit on this machine's processor, in a copy of the tree and with a Python that lacks what the other lacks.

What is rehearsed is what will run: packing, the travel of just those files that would travel, the facts, a training
that is killed and goes on, what comes back, the report, and the restored tree.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_visit.pack import files_to_copy
from benchmarks.gpu_visit.parts import FACTS, TRAIN
from benchmarks.gpu_visit.record import ROOT, find_problems
from benchmarks.gpu_visit.report import DOCS, publish

ABSENT = Path(__file__).parent / "absent"
FILES_BACK, BYTES_BACK, CHECKPOINT_BYTES = 8, 16 << 20, 15 << 20
"""Files, and bytes of each, that come back from the visited machine; bytes of a checkpoint."""
TRAINING_SECONDS = 4.0
"""Of the training that goes on, besides `START_MARGIN` times what it took until the first one's first checkpoint."""
START_MARGIN = 1.25
REPORTED = ("| copy, GB/s |", "| PyTorch |", "| weights | slots |", "| graph, operator by operator |", "Training: ")
"""What the report of a visit contains, besides the parts."""
PAGES = 13
"""Pictures to train with; one in twelve is held back to measure with."""


class RehearsalError(Exception):
    """A problem that would have occurred in a visit."""


def expect(holds: object, sentence: str) -> None:
    """Check a condition.

    Args:
        holds: The condition.
        sentence: What is wrong if it does not hold.

    Raises:
        RehearsalError: It does not hold.
    """
    if not holds:
        raise RehearsalError(sentence)


def rehearse() -> int:
    """Rehearse a visit and print the result. Exit status 0 if the visit would have succeeded."""
    begun = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="gpu-visit-") as folder:
        try:
            _rehearse(Path(folder))
        except RehearsalError as error:
            print(f"gpu_visit: the rehearsal failed: {error}", file=sys.stderr)
            return 1
    print(f"rehearsed in {time.monotonic() - begun:.0f} s; nothing ran on a GPU")
    return 0


def _rehearse(folder: Path) -> None:
    home, there = folder / "home", folder / "there"
    copy_tree(home)
    pictures = folder / "pictures"
    draw_pictures(pictures)
    models = {file.name: file.stat().st_size for file in (home / "models").glob("*.safetensors")}
    expect(models, "the tree has no weights files")

    log_step("pack")
    print(call_visit(home, "--pack", "--tiny", "--pictures", str(pictures), limit=400), end="")
    expect(
        not list((home / "models").glob("*.safetensors")), "--pack leaves weights files in the tree, and they travel"
    )
    copy_packed_files(home, there)
    count = sum(file.stat().st_size for file in there.rglob("*") if file.is_file())
    expect(count < 64 << 20, f"what travels has {count / 2**20:.1f} MiB, and 64 are the most")

    log_step("facts")
    facts = folder / "facts"
    call_visit(there, "--part", "facts", "--tiny", "--limit", "1200", "--out", str(facts), limit=1230, away=True)
    document = check_visit(facts)
    for part in document["parts"]:
        print(f"{part['seconds']:8.1f} s    {part['name']}: {part['status']} {part.get('error', '')}")
    expect([part["name"] for part in document["parts"]] == [part.name for part in FACTS], "a part did not run")

    log_step("train, killed and called again")
    rehearse_training(there, folder / "train")

    log_step("report")
    rehearse_report([facts, folder / "train"], folder)

    log_step("restore")
    call_visit(home, "--restore", limit=200)
    result = {file.name: file.stat().st_size for file in (home / "models").glob("*.safetensors")}
    expect(result == models, f"--restore does not bring back what was there: {result} instead of {models}")


def log_step(what: str) -> None:
    """Print which step begins."""
    print(f"-- {what}", flush=True)


def copy_tree(home: Path) -> None:
    """Copy the files that would be taken to the visited machine into a new git repository; weights are linked."""
    home.mkdir()
    for source in files_to_copy(ROOT):
        target = home / source.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.suffix == ".safetensors":
            try:
                os.link(source, target)
                continue
            except OSError:  # on another file system
                pass
        shutil.copy2(source, target)
    subprocess.run(["git", "init", "-q"], cwd=home, check=True)


def copy_packed_files(home: Path, there: Path) -> None:
    """Copy exactly the files that are taken to the visited machine."""
    there.mkdir()
    for source in files_to_copy(home):
        target = there / source.relative_to(home)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    shutil.copytree(home / ".gpu_visit", there / ".gpu_visit")


def draw_pictures(folder: Path) -> None:
    """Pictures and drawings to train with."""
    import numpy as np
    from PIL import Image

    from vsfdatrd.backends.accuracy import draw_line_art

    folder.mkdir()
    picture = draw_line_art(384, 384)
    for n in range(PAGES):
        page = np.roll(picture, (31 * n, 17 * n, n), (1, 2, 0)).transpose(1, 2, 0)
        Image.fromarray((255 * page).astype(np.uint8)).save(folder / f"page{n:02}.png")
        disc = f'<circle cx="50" cy="50" r="{20 + 2 * n}" fill="rgb({20 * n},90,{255 - 19 * n})" stroke="black"/>'
        disc += f'<path d="M10 {10 + 5 * n} L90 50" stroke="black" stroke-width="3"/>'
        svg = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 100 100">{disc}</svg>'
        (folder / f"disc{n:02}.svg").write_text(svg, encoding="utf-8")


def _environment(away: bool) -> dict[str, str]:
    result = os.environ | {"PYTHONPATH": str(ABSENT) if away else "", "CUDA_VISIBLE_DEVICES": ""}
    for name in ("FDATRD_CACHE", "FDATRD_MODELS"):
        result.pop(name, None)
    return result


def call_visit(tree: Path, *arguments: str, limit: float, away: bool = False) -> str:
    """Call this program in a tree.

    Args:
        tree: The tree.
        arguments: Of the command.
        limit: Seconds that it may take.
        away: Whether it runs as on the visited machine, which lacks packages.

    Returns:
        What it printed.

    Raises:
        RehearsalError: It failed or took longer.
    """
    command = [sys.executable, "-m", "benchmarks.gpu_visit", *arguments]
    try:
        done = subprocess.run(
            command, cwd=tree, env=_environment(away), capture_output=True, text=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired as error:
        raise RehearsalError(f"{' '.join(arguments[:2])} took more than {limit:.0f} s") from error
    output = f"{done.stdout}{done.stderr}"
    out = Path(arguments[arguments.index("--out") + 1], "visit.json") if "--out" in arguments else None
    if done.returncode and out and out.exists():
        failed = [part for part in json.loads(out.read_text())["parts"] if part["status"] not in ("ok", "skipped")]
        output += "".join(f"\n{part['name']}: {part.get('output', part.get('error'))}" for part in failed)
    expect(done.returncode == 0, f"{' '.join(arguments[:2])} failed: {output[-3000:]}")
    return done.stdout


def check_visit(out: Path) -> dict[str, Any]:
    """Check all files that a visit would bring back, and return its document."""
    document: dict[str, Any] = json.loads((out / "visit.json").read_text(encoding="utf-8"))
    wrong = find_problems(document)
    expect(not wrong, f"{out.name}/visit.json: {'; '.join(wrong)}")
    files = [file for file in out.rglob("*") if file.is_file() and not file.name.startswith(".")]
    expect(len(files) <= FILES_BACK, f"{len(files)} files come back, and {FILES_BACK} are the most: {files}")
    for file in files:
        expect(file.stat().st_size <= BYTES_BACK, f"{file.name} has more than {BYTES_BACK >> 20} MiB")
        expect(len(file.relative_to(out).parts) <= 3, f"{file} is too deep to come back")
    return document


def rehearse_training(there: Path, out: Path) -> None:
    """Train, kill it after its first checkpoint, go on; look at the weights."""
    arguments = ["--part", "train", "--tiny", "--limit", "600", "--out", str(out)]
    command = [sys.executable, "-m", "benchmarks.gpu_visit", *arguments]
    folder = out / "training"
    with subprocess.Popen(
        command, cwd=there, env=_environment(True), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        begun = time.monotonic()
        while checkpoint_steps(folder) < 1:
            expect(process.poll() is None, "the training ended before it wrote a checkpoint")
            expect(time.monotonic() < begun + 500, "the training wrote no checkpoint within 500 s")
            time.sleep(0.2)
        limit = round(TRAINING_SECONDS + START_MARGIN * (time.monotonic() - begun))
        process.send_signal(signal.SIGKILL)
    time.sleep(0.5)  # its part ends with it
    before = after = checkpoint_steps(folder)
    overtime = 60 + limit  # of validation at the end, which a busy machine prolongs as it does the start
    for last, seconds in ((False, limit), (True, 4 * limit)):  # once more, if the machine has become too busy
        arguments[arguments.index("--limit") + 1] = str(seconds)
        begun = time.monotonic()
        try:
            call_visit(there, *arguments, limit=seconds + overtime + 60, away=True)
        except RehearsalError:
            if last:
                raise
            continue
        took = time.monotonic() - begun
        expect(took <= seconds + overtime, f"a training of {seconds} s took {took:.0f}")
        after = checkpoint_steps(folder)
        if after > before:
            break
    expect(after > before, f"the training did not go on from step {before}: it is at {after}")
    document = check_visit(out)
    training = document["training"]
    expect(training["attention"]["at_work"], "attention is still without effect after the training")
    expect({"before", "after"} <= training.keys(), "there are no scores from before and after the training")
    for file in folder.glob("checkpoint*"):
        expect(file.stat().st_size <= CHECKPOINT_BYTES, f"{file.name} has more than {CHECKPOINT_BYTES >> 20} MiB")


def rehearse_report(visits: Sequence[Path], folder: Path) -> None:
    """Publish the results of the rehearsal into copies of the docs, since the numbers are not real."""
    files = []
    for out in visits:
        document = json.loads((out / "visit.json").read_text(encoding="utf-8"))
        files.append(folder / f"{out.name}.json")
        files[-1].write_text(json.dumps(document | {"rehearsal": False}), encoding="utf-8")
    docs, plot = folder / "gpu.md", folder / "visit.png"
    shutil.copy(DOCS, docs)
    results = publish(files, docs=docs, plot=plot, results=folder)
    expect(not find_problems(json.loads(results.read_text(encoding="utf-8"))), f"{results.name} is no visit's document")
    text = docs.read_text(encoding="utf-8")
    for part in [*FACTS, TRAIN]:
        expect(f"| {part.name} |" in text, f"the report does not say what became of {part.name}")
    for heading in REPORTED:
        expect(heading in text, f"the report has no {heading!r}")
    expect(plot.stat().st_size > 0, "the report has no picture")
    again = publish(files, docs=docs, plot=plot, results=folder)
    expect(again == results and docs.read_text(encoding="utf-8") == text, "reporting twice is not the same as once")


def checkpoint_steps(folder: Path) -> int:
    """Return the number of steps in a training's last checkpoint; 0 without one."""
    file = folder / "summary.json"
    return int(json.loads(file.read_text(encoding="utf-8")).get("step", 0)) if file.exists() else 0
