"""The number of execution contexts of an engine on each GPU: requested, or measured when the engine is first loaded.

Each context computes one frame at a time. `concurrency` measures in the worker process (`server.GpuServer`), and the
results are stored in the folder of the engine's state.
"""

import json
import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vsfdatrd.errors import ArgumentError
from vsfdatrd.system.files import keep_if_possible, read_json_object

log = logging.getLogger(__name__)

DEFAULT_STREAMS = 3
"""Minimum number of frames in flight on a GPU: one is uploaded, one computed and one downloaded.

More are used for fast networks and for two execution contexts, if memory allows (`concurrency.needed_slots`).
"""
CONTEXTS_VARIABLE = "FDATRD_GPU_CONTEXTS"
"""Environment variable with the number of execution contexts on each GPU, 1 to 4; fewer are used if memory is short.

By default, two are used if memory allows and two were faster than one when the engine was first loaded
(`concurrency`).
"""
FILE = "contexts.json"
"""Name of the file with the measurements in the folder of an engine's state."""


class ContextChoice:
    """The number of execution contexts on each GPU for an engine."""

    def __init__(self, state: Path | None, who: str) -> None:
        """Read earlier measurements.

        Args:
            state: The folder of the engine's state; None if it has none.
            who: The GPUs, their driver and everything else on which the measurement depends.
        """
        self._file, self._who = state and state / FILE, who
        self._all = read_json_object(self._file)

    def request_arguments(self, streams: int | None) -> dict[str, Any]:
        """Return the arguments `contexts` and `rates` of the request ``load``; see `server.GpuServer.choose_contexts`.

        Args:
            streams: Frames in flight on each GPU; None for the default.

        Raises:
            ArgumentError: The environment variable is not a number from 1 to 4.
        """
        known = self._all.get(self._who)
        measured = known if isinstance(known, dict) else {}
        rates = measured.get("fps")
        valid = isinstance(rates, list) and len(rates) == 2 and all(isinstance(rate, int | float) for rate in rates)
        return {"contexts": requested_contexts(streams, measured), "rates": rates if valid else None}

    def store(self, loaded: Mapping[str, Any]) -> None:
        """Log and store the measurements made while an engine was loaded, if any.

        Args:
            loaded: The worker's answer to the request ``load``.
        """
        if not loaded["measured"]:
            return
        fps = [round(rate, 1) for rate in loaded["measured"]]
        chosen = "used" if loaded["contexts"] > 1 else "not used"
        text = "two frames at a time: %.1f frames per second, one at a time: %.1f; %s on %s"
        log.info(text, fps[1], fps[0], chosen, self._who)
        if self._file:
            entry = {self._who: {"contexts": loaded["contexts"], "fps": fps}}
            keep_if_possible(self._file, json.dumps(self._all | entry).encode())


def requested_contexts(streams: int | None, measured: Mapping[str, Any]) -> int | None:
    """Return the requested or previously measured number of execution contexts on each GPU; None to measure it.

    Args:
        streams: Frames in flight on each GPU; None for the default.
        measured: The entry of this GPU and driver in the file of measurements; empty if there is none.

    Raises:
        ArgumentError: The environment variable is not a number from 1 to 4.
    """
    value = os.environ.get(CONTEXTS_VARIABLE)
    if value is not None:
        if value not in tuple("1234"):
            raise ArgumentError(
                f"{CONTEXTS_VARIABLE}={value!r} is not a number of execution contexts; set it to 1 to 4, or unset it"
            )
        return int(value)
    if streams is not None and streams <= DEFAULT_STREAMS:
        return 1  # two would wait for each other's copies
    known = measured.get("contexts")
    return known if known in (1, 2) else None
