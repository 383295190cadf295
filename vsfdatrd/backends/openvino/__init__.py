"""The OpenVINO backend for processors."""
