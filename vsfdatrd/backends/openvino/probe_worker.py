"""Worker process that tries one ONNX file; `archs/onnx_probe.py` is the client. Run as a module."""

import contextlib
import sys
from pathlib import Path
from typing import Any

import psutil

from vsfdatrd.archs.onnx import Range
from vsfdatrd.errors import EngineError, FdatrdError
from vsfdatrd.weights.files import refusal
from vsfdatrd.workers.server import WorkerServer, serve_forever


class ProbeServer(WorkerServer):
    """Request handler that describes ONNX files."""

    def do_probe(self, path: str, multiple: int | None, input_range: Range | None) -> dict[str, Any]:
        """Answer the request ``probe``; see `probe.describe` for arguments and result.

        Raises:
            CheckpointError: The file cannot be used.
            EngineError: OpenVINO cannot be imported.
        """
        try:
            from vsfdatrd.backends.openvino.probe import describe
            from vsfdatrd.backends.openvino.worker import last_line
        except Exception as error:  # a damaged installation may cause any exception
            raise EngineError(
                f"OpenVINO, which tries ONNX files, cannot be imported ({type(error).__name__}: {error}); "
                "pip install --force-reinstall openvino"
            ) from error
        try:
            return describe(Path(path), multiple, input_range)
        except FdatrdError:
            raise
        except Exception as error:  # a malformed file may cause any exception
            raise refusal(Path(path), f"cannot be used: {last_line(error)[:200]}") from error


def _limit_memory() -> None:
    """Limit this process's memory, so that a shape with billions of elements fails here."""
    if sys.platform != "win32":  # Windows has no such limit, but refuses what exceeds memory plus page file
        import resource

        with contextlib.suppress(ValueError, OSError):
            most = psutil.virtual_memory().available * 3 // 4
            resource.setrlimit(resource.RLIMIT_DATA, (most, most))


if __name__ == "__main__":
    _limit_memory()
    serve_forever(ProbeServer)
