"""The instruction-set cap: makes a newer CPU compute like an older one.

``FDATRD_MAX_ISA=avx2`` makes every CPU backend compute as on a CPU with AVX2 and nothing newer. The native kernels read
the variable themselves (`_native/cpu_check.c`); the libraries have their own variables, which `apply_cap` sets before
they are loaded. Library variables that are already set are left unchanged.
"""

import os

from vsfdatrd.errors import ArgumentError

VARIABLE = "FDATRD_MAX_ISA"

CAPS = {
    "sse41": ("SSE41", "default"),
    "avx2": ("AVX2", "avx2"),
    "avx512": ("AVX512_CORE", "avx512"),
    "avx512_vnni": ("AVX512_CORE_VNNI", "avx512"),
    "avx512_bf16": ("AVX512_CORE_BF16", "avx512"),
    "amx": ("AVX512_CORE_AMX", "avx512"),
}
"""Accepted values, with the corresponding values for oneDNN and OpenVINO, and for PyTorch."""


def instruction_cap() -> str | None:
    """Return the cap, a key of `CAPS`; None if there is none.

    Raises:
        ArgumentError: The variable has an unknown value.
    """
    value = os.environ.get(VARIABLE, "").strip().lower()
    if value and value not in CAPS:
        raise ArgumentError(
            f"{VARIABLE}={os.environ[VARIABLE]!r} is not a set of instructions; set it to one of {', '.join(CAPS)}, or "
            "unset it"
        )
    return value or None


def apply_cap() -> None:
    """Set the environment variables that the libraries read on first use.

    Unknown values are ignored; see `instruction_cap`.
    """
    try:
        limit = instruction_cap()
    except ArgumentError:
        return
    if limit is not None:
        onednn, aten = CAPS[limit]
        # oneDNN reads the first variable; OpenVINO's own kernels and reported capabilities follow the second (since
        # 2026.4).
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", onednn)
        os.environ.setdefault("OV_CPU_MAX_ISA", onednn)
        os.environ.setdefault("ATEN_CPU_CAPABILITY", aten)
