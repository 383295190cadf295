"""The visit's one JSON file: written anew after every part, so that an interruption loses one part at most."""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vsfdatrd.system.files import write_atomic

ROOT = Path(__file__).parents[2]
SCHEMA = 1
STATUSES = ("ok", "failed", "timeout", "skipped")
FIELDS: dict[str, type] = {
    "machine": dict,
    "ceilings": dict,
    "tests": dict,
    "engines": list,
    "slots": list,
    "graphs": list,
    "profile": list,
    "kernels": list,
    "training_steps": list,
    "training": dict,
}
"""What parts may add, and as what."""


class Skipped(Exception):
    """Raised by a part that cannot run on this machine; the message is the reason."""


def write(file: Path, document: Mapping[str, Any]) -> None:
    """Replace a JSON file as a whole: readers find the old content or the new, also after a crash."""
    write_atomic(file, json.dumps(to_json_value(document), indent=1, ensure_ascii=False) + "\n")


def to_json_value(value: Any) -> Any:
    """Convert a value for JSON: NaN and infinity become null."""
    if isinstance(value, Mapping):
        return {str(name): to_json_value(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [to_json_value(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


class Visit:
    """A visit's document, and the file it is in."""

    def __init__(self, file: Path, measured: str | None, *, rehearsal: bool) -> None:
        self.file = file
        date = datetime.now(UTC).strftime("%Y-%m-%d")
        self.document: dict[str, Any] = {
            "schema": SCHEMA,
            "date": date,
            "commit": measured,
            "rehearsal": rehearsal,
            "parts": [],
            "files": [],
        }
        self.save()

    def add(self, part: Mapping[str, Any], found: Mapping[str, Any]) -> None:
        """Add the status of a part and its results."""
        self.document["parts"].append(dict(part))
        self.document |= found
        self.save()

    def save(self) -> None:
        """Write the document, with the names of the other files in its folder."""
        folder = self.file.parent
        beside = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
        self.document["files"] = [
            {"name": str(file.relative_to(folder)), "bytes": file.stat().st_size}
            for file in beside
            if file != self.file
        ]
        write(self.file, self.document)


def find_problems(document: Any) -> list[str]:
    """List what is wrong with a visit's document, as sentences; empty if it follows the schema."""
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        return [f"it is no visit of schema {SCHEMA}"]
    found = []
    for name in ("date", "parts", "files", "rehearsal"):
        if name not in document:
            found.append(f"it has no {name}")
    for part in document.get("parts", []):
        if part.get("status") not in STATUSES or not isinstance(part.get("seconds"), int | float):
            found.append(f"the part {part.get('name')} has no status out of {', '.join(STATUSES)}, or no seconds")
        if part.get("status") in ("failed", "timeout", "skipped") and not part.get("error"):
            found.append(f"the part {part.get('name')} does not say why it is {part.get('status')}")
    for name, kind in FIELDS.items():
        if name in document and not isinstance(document[name], kind):
            found.append(f"{name} is no {kind.__name__}")
    for row in document.get("engines", []):
        if "error" not in row and not {"precision", "weights", "psnr_db", "fps_alone"} <= row.keys():
            found.append("a row of engines lacks precision, weights, psnr_db or fps_alone")
    for row in document.get("slots", []):
        if not {"slots", "fps", "share", "host_ms"} <= row.keys():
            found.append("a row of slots lacks slots, fps, share or host_ms")
    known = {"schema", "date", "commit", "rehearsal", "parts", "files", *FIELDS}
    found += [f"{name} is nothing that a visit has" for name in document if name not in known]
    return found
