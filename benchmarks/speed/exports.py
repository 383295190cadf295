"""ONNX files, each written once in a separate process, whose memory is not attributed to a contestant.

python -m benchmarks.speed.exports plain|ours WEIGHTS 720x540 FILE.onnx
"""

import importlib.util
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Literal

from benchmarks.errors import Missing
from benchmarks.speed.cases import Size

type Kind = Literal["plain", "ours"]
"""``plain``: PyTorch's own export, as users of other plugins create it; ``ours``: what `vsfdatrd export` writes."""


def exported(kind: Kind, weights: Path, size: Size, folder: Path) -> Path:
    """Write an ONNX file, if it does not exist.

    Args:
        kind: Who exports.
        weights: Path of the weights file.
        size: Width and height of the frames.
        folder: Of the ONNX file.

    Returns:
        The path of the file.

    Raises:
        Missing: PyTorch, which exports, is not installed.
        RuntimeError: The network cannot be exported.
    """
    if kind == "plain" and importlib.util.find_spec("torch") is None:
        raise Missing("its file is PyTorch's export: pip install vsfdatrd[torch]")
    width, height = size
    file = folder / f"{weights.stem}_{width}x{height}_{kind}.onnx"
    if not file.exists():
        command = [sys.executable, "-m", __spec__.name, kind, str(weights), f"{width}x{height}", str(file)]
        done = subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{weights.name} cannot be exported: {(done.stderr.strip().splitlines() or ['?'])[-1]}")
    return file


def main(kind: str, weights: Path, size: Size, file: Path) -> None:
    """Write one file atomically."""
    part = file.with_suffix(".part.onnx")
    if kind == "plain":
        _trace(weights, size, part)
    else:
        from vsfdatrd.commands.export import export

        export(str(weights), part, size=size, verify=False)
    part.rename(file)


def _trace(weights: Path, size: Size, file: Path) -> None:
    import torch

    from vsfdatrd import load_model

    width, height = size
    with warnings.catch_warnings(), torch.no_grad():  # with gradients, 720×540 is too much for 24 GiB
        warnings.simplefilter("ignore")  # tracing warns of every size it takes as fixed, which is what we want
        torch.onnx.export(
            load_model(weights),
            (torch.zeros(1, 3, height, width),),
            str(file),
            dynamo=False,
            opset_version=17,
            input_names=["input"],
            output_names=["output"],
        )


if __name__ == "__main__":
    sides = sys.argv[3].split("x")
    main(sys.argv[1], Path(sys.argv[2]), (int(sides[0]), int(sides[1])), Path(sys.argv[4]))
