"""The cap on instruction sets applies to every engine; unknown caps are errors."""

import json
import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

from vsfdatrd.backends.native import kernels
from vsfdatrd.errors import ArgumentError
from vsfdatrd.system import instructions

FOUND = """
import json, sys
import vsfdatrd
from vsfdatrd.backends.native import kernels
from vsfdatrd.backends.openvino import backend as openvino
import torch
print(json.dumps({
    "native": kernels.unsupported_reason(), "vnni": kernels.has_vnni(),
    "avx512": kernels.has_avx512(), "amx_int8": kernels.has_amx_int8(),
    "used": kernels.uses_amx(),
    "openvino": openvino._standby.describe()["abilities"],
    "torch": torch.backends.cpu.get_cpu_capability(), "bf16": torch.ops.mkldnn._is_mkldnn_bf16_supported(),
}))
openvino._standby.shutdown()
"""


def found(cap: str) -> dict[str, object]:
    """Return the instruction sets that the engines of another process report."""
    names = ("ONEDNN_MAX_CPU_ISA", "OV_CPU_MAX_ISA", "ATEN_CPU_CAPABILITY")
    environment = {name: value for name, value in os.environ.items() if name not in names}
    done = subprocess.run(
        [sys.executable, "-c", FOUND],
        capture_output=True,
        text=True,
        check=True,
        env=environment | {instructions.VARIABLE: cap},
        cwd=Path(__file__).parents[2],
    )
    result: dict[str, object] = json.loads(done.stdout)
    return result


def test_avx2_is_all_there_is() -> None:
    able = found("AVX2")
    if able["native"] is not None:
        pytest.skip(f"this processor is no AVX2 processor: {able['native']}")
    assert [able[name] for name in ("avx512", "vnni", "amx_int8", "used")] == [False] * 4
    assert able["torch"] == "AVX2"
    assert able["bf16"] is False
    assert not {"BF16", "FP16"} & set(str(name) for name in able["openvino"])  # type: ignore[attr-defined]


def test_without_a_cap_the_native_engine_sees_what_the_system_sees() -> None:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists() or platform.machine() != "x86_64":
        pytest.skip("this system does not list what its processor can do")
    flags = set(next(line for line in cpuinfo.read_text().splitlines() if line.startswith("flags")).split())
    able = found("")
    assert able["avx512"] is ("avx512f" in flags)
    compiled = hasattr(kernels.load_library(), "fdatrd_amx_sums")  # older compilers do not know it
    assert able["amx_int8"] is (compiled and able["vnni"] and {"amx_tile", "amx_int8"} <= flags)
    assert able["amx_int8"] or not able["used"]
    assert able["vnni"] is ({"avx2", "fma", "avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_vnni"} <= flags)


def test_a_cap_below_amx_turns_amx_off() -> None:
    able = found("avx512_bf16")
    assert [able[name] for name in ("amx_int8", "used")] == [False] * 2


def test_less_than_avx2_is_no_native_engine() -> None:
    able = found("sse41")
    assert able["native"] == "FDATRD_MAX_ISA=sse41 turns AVX2 off"
    assert able["torch"] == "DEFAULT"


def test_what_is_no_cap_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(instructions.VARIABLE, "avx3")
    instructions.apply_cap()  # a script that does not upscale goes on
    with pytest.raises(ArgumentError, match=r"FDATRD_MAX_ISA='avx3' is not a set of instructions; set it to "):
        instructions.instruction_cap()


def test_a_librarys_own_variable_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(instructions.VARIABLE, "avx2")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    monkeypatch.delenv("OV_CPU_MAX_ISA", raising=False)
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "")
    instructions.apply_cap()
    assert (os.environ["ONEDNN_MAX_CPU_ISA"], os.environ["OV_CPU_MAX_ISA"]) == ("SSE41", "AVX2")
    monkeypatch.delenv("OV_CPU_MAX_ISA")
