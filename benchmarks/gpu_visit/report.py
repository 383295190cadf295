"""A visit's results for readers: one JSON in benchmarks/results, a section of docs/gpu_internals.md, a picture."""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.gpu_visit.pack import PackError
from benchmarks.gpu_visit.record import ROOT, find_problems, write

DOCS = ROOT / "docs" / "gpu_internals.md"
PLOT = ROOT / "docs" / "gpu_visit.png"
RESULTS = ROOT / "benchmarks" / "results"
BEGIN, END = "<!-- gpu visit: begin -->", "<!-- gpu visit: end -->"
"""Between these lines of docs/gpu_internals.md everything is written by `publish`."""


def join_documents(files: Sequence[Path]) -> dict[str, Any]:
    """Several calls' documents as one, the later ones over the earlier ones.

    Raises:
        PackError: A file is no visit, or a rehearsal.
    """
    document: dict[str, Any] = {}
    parts: list[Any] = []
    for file in files:
        try:
            result = json.loads(file.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise PackError(f"{file} cannot be read as a visit: {error}") from error
        if wrong := find_problems(result):
            raise PackError(f"{file}: {'; '.join(wrong)}")
        if result["rehearsal"]:
            raise PackError(f"{file} is of a rehearsal, whose numbers mean nothing")
        parts += result["parts"]
        document |= result
    return document | {"parts": parts}


def publish(files: Sequence[Path], *, docs: Path = DOCS, plot: Path = PLOT, results: Path = RESULTS) -> Path:
    """Write the results of a visit's calls, the section and the picture; the path of the results."""
    document = join_documents(files)
    name = document.get("machine", {}).get("gpu") or "unknown"
    target = results / f"gpu_visit_{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}.json"
    write(target, document)
    draw_plot(document, plot)
    text = docs.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise PackError(f"{docs} has no lines {BEGIN} and {END}, between which the results go")
    docs.write_text(f"{before}{BEGIN}\n{format_section(document, target.name)}{END}{after}", encoding="utf-8")
    return target


def format_table(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table; an empty line before and after it."""
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    lines += [f"| {' | '.join('-' if cell is None else str(cell) for cell in row)} |" for row in rows]
    return ["", *lines, ""]


def format_section(document: Mapping[str, Any], file: str) -> str:
    """The section's text: what ran, what it gave, what did not run."""
    machine = document.get("machine", {})
    lines = [
        f"Measured on {document['date']} at commit {document['commit']} on {machine.get('gpu')} (driver "
        f"{machine.get('driver')}, PyTorch {machine.get('torch')}); everything is in "
        f"[the results](../benchmarks/results/{file}).",
        "",
        "![Frames a second on the GPU](gpu_visit.png)",
    ]
    lines += format_table(
        ("part", "became", "seconds", ""),
        [(part["name"], part["status"], part["seconds"], part.get("error", "")) for part in document["parts"]],
    )
    if ceilings := document.get("ceilings"):
        names = {
            "copy_gbs": "copy, GB/s",
            "fp16_tf": "fp16, TFLOP/s",
            "bf16_tf": "bf16, TFLOP/s",
            "h2d_gbs": "to it, GB/s",
            "d2h_gbs": "from it, GB/s",
            "both_gbs": "both at once, GB/s",
        }
        lines += format_table(list(names.values()), [[ceilings.get(name) for name in names]])
    if tests := document.get("tests"):
        failed = ", ".join(test["id"] for test in tests["failed"]) or "none"
        lines += ["", f"tests/gpu: {tests['passed']} passed, {len(tests['skipped'])} skipped, failed: {failed}.", ""]
    if engines := document.get("engines"):
        lines += format_table(
            ("PyTorch", "weights", "PSNR to fp32, dB", "fps alone", "MiB"),
            [
                (
                    row["precision"],
                    row["weights"],
                    row.get("psnr_db", row.get("error")),
                    row.get("fps_alone", {}).get("median"),
                    row.get("memory_mib"),
                )
                for row in engines
            ],
        )
    if slots := document.get("slots"):
        lines += format_table(
            ("weights", "slots", "fps", "share of the engine's own rate", "PSNR, dB"),
            [(row["weights"], row["slots"], row["fps"], f"{row['share']:.0%}", row.get("psnr_db")) for row in slots],
        )
    if graphs := document.get("graphs"):
        lines += format_table(
            ("graph, operator by operator", "weights", "PSNR to fp32, dB"),
            [(row["graph"], row["weights"], row.get("psnr_db", row.get("error"))) for row in graphs],
        )
    if profile := document.get("profile"):
        lines += format_table(
            ("kernel", "calls a frame", "ms a frame"),
            [(f"`{row['name'][:80]}`", row["calls"], row["ms"]) for row in profile[:12]],
        )
    if kernels := document.get("kernels"):
        heads = ("our kernel", "precision", "launches a frame", "error", "ms a launch", "GB/s", "TFLOP/s", "PSNR, dB")
        keys = ("precision", "launches", "error", "ms", "gb_s", "tflop_s", "psnr_db")
        lines += format_table(heads, [(f"`{row['kernel']}`", *(row.get(key) for key in keys)) for row in kernels])
    for row in document.get("training_steps", []):
        if "error" in row:
            lines += ["", f"A training step of {row['batch']} crops: {row['error']}.", ""]
            continue
        phases = ", ".join(f"{name} {ms} ms" for name, ms in row.get("phase_ms", {}).items())
        lines += ["", f"A training step of {row['batch']} crops: {row.get('step_ms')} ms ({phases}).", ""]
    if training := document.get("training"):
        before, after = (training.get(name, {}).get("psnr", {}) for name in ("before", "after"))
        lines += ["", f"Training: {training.get('steps')} steps, {training.get('seconds_per_step')} s each.", ""]
        kinds = list(after)
        lines += format_table(
            ("PSNR, dB", *kinds),
            [("before", *(before.get(kind) for kind in kinds)), ("after", *(after.get(kind) for kind in kinds))],
        )
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).rstrip() + "\n\n"


def draw_plot(document: Mapping[str, Any], file: Path) -> None:
    """A picture: frames a second of every engine alone, and through 1 to 4 slots."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, (left, right) = pyplot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    rows = [row for row in document.get("engines", []) if "fps_alone" in row]
    names = [f"{row['precision']}, {row['weights']}" for row in rows]
    rates = [row["fps_alone"]["median"] for row in rows]
    left.barh(names, rates, color="#4477aa")
    left.bar_label(left.containers[0], fmt=" %.1f") if rows else None
    left.invert_yaxis()
    left.set_xlabel("frames a second, the network alone")
    for weights in dict.fromkeys(row["weights"] for row in document.get("slots", [])):
        those = [row for row in document["slots"] if row["weights"] == weights]
        right.plot([row["slots"] for row in those], [100 * row["share"] for row in those], "o-", label=weights)
    right.axhline(97, color="gray", linestyle=":", linewidth=1)
    right.set_xlabel("frames in flight")
    right.set_ylabel("% of the engine's own rate")
    right.set_xticks(sorted({row["slots"] for row in document.get("slots", [])}) or [1])
    if document.get("slots"):
        right.legend(frameon=False, loc="lower right")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{document.get('machine', {}).get('gpu')}, medium at 720×540 (PyTorch)", fontsize=11)
    figure.savefig(file, dpi=110)
    pyplot.close(figure)
