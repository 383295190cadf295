"""The cap on instruction sets, by which a newer processor stands in for an older one.

``FDATRD_MAX_ISA=avx2`` makes every engine for processors compute as on one that has AVX2 and nothing newer. The native
kernels read it themselves (`_native/cpu_check.c`), and the libraries have variables of their own, which `apply`
sets before they are loaded. A library's variable that is set already is left as it is.
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
"""What the variable may say, and what that is to oneDNN and OpenVINO, and to PyTorch."""


def cap() -> str | None:
    """Return the cap, a key of `CAPS`; None without one.

    Raises:
        ArgumentError: The variable has a value that is none.
    """
    given = os.environ.get(VARIABLE, "").strip().lower()
    if given and given not in CAPS:
        raise ArgumentError(
            f"{VARIABLE}={os.environ[VARIABLE]!r} is no set of instructions; set it to one of {', '.join(CAPS)}, or "
            "unset it"
        )
    return given or None


def apply() -> None:
    """Hand the cap on to the libraries, which look at it when they are first used. Never fails: `cap` complains."""
    try:
        chosen = cap()
    except ArgumentError:
        return
    if chosen is not None:
        onednn, aten = CAPS[chosen]
        # oneDNN reads the first; OpenVINO's own kernels, and what it says it can do, go by the second (since 2026.4).
        os.environ.setdefault("ONEDNN_MAX_CPU_ISA", onednn)
        os.environ.setdefault("OV_CPU_MAX_ISA", onednn)
        os.environ.setdefault("ATEN_CPU_CAPABILITY", aten)
