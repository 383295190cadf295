"""Results of measurements, made up."""

from typing import Any

from benchmarks.speed.race import Row


def row(label: str, fps: float, **given: Any) -> Row:
    rates = {"median": fps, "min": fps * 0.9, "max": fps * 1.1, "rounds": [fps]}
    return {
        "label": label,
        "contestant": label,
        "model": "medium",
        "size": [720, 540],
        "clip": None,
        "fps": rates,
        "first_frame_s": 1.0,
        "cpu_seconds_per_frame": 2.0,
        "peak_memory_mib": 700,
        "same_network": True,
    } | given


def result(*rows: Row, gpus: tuple[str, ...] = ()) -> dict[str, Any]:
    return {
        "machine": {"gpus": list(gpus), "cpu": "a CPU", "cores": 2},
        "result": {"groups": [{"name": "headline", "title": "medium, 720×540", "rows": list(rows)}]},
    }
