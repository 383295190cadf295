"""Visit a machine with an NVIDIA GPU for a few minutes, without downloads on that machine.

python -m benchmarks.gpu_visit --rehearse                       all of it on a CPU, with tiny sizes
python -m benchmarks.gpu_visit --pack [--pictures FOLDER]       fill .gpu_visit/, move weights files out of the tree
python -m benchmarks.gpu_visit --part facts --limit 230 --out DIR       there: what only a GPU can tell
python -m benchmarks.gpu_visit --part train --limit 440 --out DIR       there: train until then
python -m benchmarks.gpu_visit --restore                        put the weights files back
python -m benchmarks.gpu_visit --report DIR/visit.json ...      docs/gpu_internals.md and results of what came back

The working tree and .gpu_visit/ are copied to that machine. visit.json in --out is rewritten after every part.
"""

import argparse
import os
import sys
import tempfile
from pathlib import Path

from benchmarks.command_line import positive_float
from benchmarks.gpu_visit import pack
from benchmarks.gpu_visit.parts import FACTS, SLOWER, TRAIN, Part, run_all
from benchmarks.gpu_visit.record import ROOT, Visit
from benchmarks.gpu_visit.sizes import FULL, TINY

PARTS = tuple(part.name for part in FACTS)
LIMITS = {"facts": 230.0, "train": 440.0}
"""Default time limit of a call, in seconds."""


def environment(out: Path, limit: float) -> dict[str, str]:
    """Environment variables for the parts: cache folders that the next call reuses."""
    caches = Path(tempfile.gettempdir(), "vsfdatrd-gpu-visit")
    caches.mkdir(exist_ok=True)
    return {
        "FDATRD_CACHE": str(caches / "engines"),
        "FDATRD_MODELS": str(caches / "models.toml"),
        "TORCHINDUCTOR_CACHE_DIR": str(caches / "inductor"),
        "TRITON_CACHE_DIR": str(caches / "triton"),
        "GPU_VISIT_OUT": str(out),
        "GPU_VISIT_SECONDS": str(limit),
    }


def visit(name: str, out: Path, limit: float, *, tiny: bool, only: list[str] | None) -> int:
    """Run the parts of one call.

    Args:
        name: ``facts`` or ``train``.
        out: Folder of the results.
        limit: Seconds for all of them.
        tiny: Whether this is a rehearsal.
        only: Names of the parts of ``facts`` to run; None for all.

    Returns:
        0 if all parts ran or were skipped, else 1.
    """
    out = out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    pack.unpack()
    measured = pack.COMMIT.read_text(encoding="utf-8") if pack.COMMIT.exists() else None
    facts = tuple(part for part in FACTS if not only or part.name in only)
    parts = facts if name == "facts" else (Part(TRAIN.name, limit),)
    run = Visit(out / "visit.json", measured, rehearsal=tiny)
    # A rehearsal's training has the same deadline; on a busy processor, its end takes longer than a GPU's margin.
    run_all(run, parts, limit * (SLOWER if tiny else 1), environment(out, limit), tiny=tiny)
    return 0 if all(part["status"] in ("ok", "skipped") for part in run.document["parts"]) else 1


def show(contents: list[tuple[str, int]]) -> None:
    """Print the contents of the pack."""
    for what, count in contents:
        print(f"{count / 2**20:8.2f} MiB  {what}")
    total = sum(count for _, count in contents)
    print(f"{total / 2**20:8.2f} MiB  in all, of {pack.MOST >> 20}")
    print(f"weights files are in {pack.KEPT.name}/ until `python -m benchmarks.gpu_visit --restore`")


def main(arguments: list[str] | None = None) -> int:
    """See the module's docstring. Exit status: 0 done, 1 something failed, 2 wrong usage."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_visit", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument("--pack", action="store_true", help="prepare what travels")
    action.add_argument("--restore", action="store_true", help="undo what --pack did to the tree")
    action.add_argument("--part", choices=("facts", "train"), help="on the machine with the GPU")
    action.add_argument("--rehearse", action="store_true", help="everything on this machine's processor")
    action.add_argument("--report", nargs="+", type=Path, metavar="JSON", help="visits to publish")
    parser.add_argument("--limit", type=positive_float, metavar="SECONDS", help="of a call (facts 230, train 440)")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "gpu_visit", help="folder of results")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=PARTS, help=f"of facts: {', '.join(PARTS)}")
    parser.add_argument("--pictures", type=Path, help="of --pack: pictures and drawings to train with")
    parser.add_argument("--tiles", type=Path, help="of --pack: what models.training.pack made of them")
    parser.add_argument("--checkpoint", type=Path, help="of --pack: an earlier visit's, from which training goes on")
    parser.add_argument("--tiny", action="store_true", help="sizes of a rehearsal")
    a = parser.parse_args(arguments)
    try:
        if a.restore:
            names = pack.restore()
            print(f"put back {', '.join(names)}" if names else "nothing was moved")
        elif a.pack:
            usual = pack.PICTURES if pack.PICTURES.is_dir() and not a.tiles else None
            sizes = TINY if a.tiny else FULL
            show(pack.pack(sizes, pictures=a.pictures or usual, tiles=a.tiles, checkpoint=a.checkpoint))
        elif a.rehearse:
            from benchmarks.gpu_visit.rehearsal import rehearse

            return rehearse()
        elif a.report:
            from benchmarks.gpu_visit.report import publish

            publish(a.report)
        else:
            os.environ.setdefault("PYTHONUNBUFFERED", "1")
            return visit(a.part, a.out, a.limit or LIMITS[a.part], tiny=a.tiny, only=a.only)
    except pack.PackError as error:
        print(f"gpu_visit: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
