"""The visited machine: GPU, driver, link, versions."""

import platform
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import psutil
import torch

from benchmarks.gpu_visit.sizes import Sizes
from vsfdatrd.system.packages import installed_versions

PACKAGES = ("torch", "triton", "cuda-bindings", "numpy", "onnx", "onnxruntime", "tensorrt_rtx", "tensorrt", "openvino")
_QUERIES = {
    "gpu": "name",
    "driver": "driver_version",
    "memory_mib": "memory.total",
    "free_mib": "memory.free",
    "pcie_generation": "pcie.link.gen.current",
    "pcie_width": "pcie.link.width.current",
    "power_limit_w": "power.limit",
}
"""The nvidia-smi field of each fact."""


def run(sizes: Sizes, record: Callable[[dict[str, Any]], None]) -> None:
    """Ask nvidia-smi, PyTorch and the installed packages."""
    result: dict[str, Any] = {"gpu": None, "cuda": torch.version.cuda, "python": platform.python_version()}
    result |= dict.fromkeys(PACKAGES) | installed_versions(PACKAGES)
    result |= {"cores": psutil.cpu_count(), "ram_gib": round(psutil.virtual_memory().total / 2**30)}
    result |= query_nvidia_smi()
    if torch.cuda.is_available():
        about = torch.cuda.get_device_properties(0)
        result |= {
            "gpu": about.name,
            "capability": f"{about.major}.{about.minor}",
            "sm": about.multi_processor_count,
            "l2_mib": about.L2_cache_size >> 20,
        }
    record({"machine": result})


def query_nvidia_smi() -> dict[str, Any]:
    """Facts of the first GPU from nvidia-smi; empty without a GPU."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, "-i", "0", f"--query-gpu={','.join(_QUERIES.values())}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return {}
    values = (text.strip() for text in done.stdout.splitlines()[0].split(","))
    return {name: value for name, value in zip(_QUERIES, values, strict=False) if "N/A" not in value}
