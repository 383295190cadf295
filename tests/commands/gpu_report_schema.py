"""Schema of the reports of `vsfdatrd doctor --gpu`, also of those collected in benchmarks/results/community."""

from collections.abc import Mapping
from typing import Any

from vsfdatrd.commands.gpu_report import SCHEMA

_FIELDS: dict[str, type | tuple[type, ...]] = {
    "schema": int,
    "vsfdatrd": str,
    "date": str,
    "machine": dict,
    "libraries": dict,
    "model": str,
    "weights": str,
    "size": list,
    "engines": list,
}
_MACHINE: dict[str, type | tuple[type, ...]] = {
    "gpu": str,
    "capability": str,
    "gpus": int,
    "driver": (str, type(None)),
    "cuda": str,
    "memory_mib": (int, type(None)),
    "system": str,
    "cpu": str,
    "cores": (int, type(None)),
    "python": str,
}
_NUMBER = (int, float)
_ENGINE: dict[str, type | tuple[type, ...]] = {
    "backend": str,
    "library": str,
    "precision": str,
    "opening_s": _NUMBER,
    "reopening_s": _NUMBER,
    "psnr_db": _NUMBER,
    "fps_alone": _NUMBER,
    "fps_vapoursynth": (int, float, type(None)),
    "share": (int, float, type(None)),
    "memory_mib": _NUMBER,
    "slots": int,
    "contexts": int,
}


def problems(report: Any) -> list[str]:
    """Validate a report.

    Args:
        report: The parsed JSON.

    Returns:
        One sentence per problem; empty if the report is valid.
    """
    if not isinstance(report, Mapping) or report.get("schema") != SCHEMA:
        return [f"it is no report of schema {SCHEMA}"]
    result = _schema_errors("the report", report, _FIELDS)
    if isinstance(report.get("machine"), Mapping):
        result += _schema_errors("machine", report["machine"], _MACHINE)
    for row in report["engines"] if isinstance(report.get("engines"), list) else ():
        if not isinstance(row, Mapping) or not isinstance(row.get("backend"), str):
            result.append("a row of engines has no backend")
        elif "error" not in row:
            result += _schema_errors(row["backend"], row, _ENGINE)
            if isinstance(row.get("psnr_db"), _NUMBER) and not 0 < row["psnr_db"] < 250:
                result.append(f"{row['backend']}: {row['psnr_db']} dB cannot be")
    return result


def _schema_errors(
    record_name: str, record: Mapping[str, Any], fields: Mapping[str, type | tuple[type, ...]]
) -> list[str]:
    wrong = [f"{record_name} lacks {name}" for name in fields if name not in record]
    wrong += [f"{record_name} has {name}, which is not known" for name in record if name not in fields]
    wrong += [
        f"{record_name}: {name} is {record[name]!r}"
        for name, kind in fields.items()
        if name in record and (not isinstance(record[name], kind) or isinstance(record[name], bool))
    ]
    return wrong
