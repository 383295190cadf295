"""Import OpenVINO without its converter and telemetry, which take half of the start-up time."""

import sys

_CONVERTER = "openvino.tools.ovc"

_known = _CONVERTER in sys.modules
if not _known:
    sys.modules[_CONVERTER] = None  # type: ignore[assignment]  # as if it were not installed, which is allowed
import openvino as openvino  # noqa: E402

if not _known:
    del sys.modules[_CONVERTER]
