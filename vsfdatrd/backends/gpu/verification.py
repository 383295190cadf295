"""Verify an engine on a GPU before its first frame, once for each GPU and driver."""

import json
import logging
from collections.abc import Callable
from pathlib import Path

from vsfdatrd.options import Precision
from vsfdatrd.system.files import keep_if_possible, read_json_object

log = logging.getLogger(__name__)

FILE = "verified.json"
"""File with the PSNR in dB for every GPU and driver, in the folder of an engine's state."""


def verify_once(state: Path | None, key: str, precision: Precision, measure: Callable[[], float]) -> None:
    """Compare an engine with fp32, unless that has been done before.

    Args:
        state: The folder of the engine's state; None for none.
        key: The GPUs, their driver, and everything else on which the result depends.
        precision: The engine's precision, for the log.
        measure: Compares the engine and returns the PSNR in dB.

    Raises:
        PrecisionUnfit: The output differs too much from the reference.
        EngineError: The GPU failed.
    """
    file = state and state / FILE
    verified = read_json_object(file)
    if key in verified:
        return
    psnr = measure()
    log.info("%s agrees with fp32 to %.1f dB on %s", precision, psnr, key)
    if file:
        keep_if_possible(file, json.dumps(verified | {key: round(psnr, 2)}).encode())
