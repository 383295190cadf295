"""Names and metadata from files cannot control the terminal."""

import io
import json
import os
import pty
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from vsfdatrd.errors import ArgumentError, EncodeError, FdatrdError
from vsfdatrd.system.terminal import escape_control, printable_stream, raw_stream

EVIL = "\x1b]0;OWNED\x07\x1b[31m"


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("plain, ünïcode, 魔女, \u200d\u200c", "plain, ünïcode, 魔女, \u200d\u200c"),
        ("tab\tline\n", "tab\tline\n"),
        ("\x1b[2J", r"\x1b[2J"),
        ("a\rb\bc\x7f\0", r"a\rb\x08c\x7f\x00"),
        ("\x9b31m", r"\x9b31m"),
        ("\u202egnp.exe", r"\u202egnp.exe"),
        ("a\u2028b\u2066", r"a\u2028b\u2066"),
        ("\udcff", "\udcff"),
    ],
)
def test_controls_become_escapes(text: str, safe: str) -> None:
    assert escape_control(text) == safe


def test_a_stream_prints_no_controls() -> None:
    raw = io.StringIO()
    stream = printable_stream(raw)
    print("a\x1b[1m", "b", file=stream)
    stream.writelines(["\x9b", "\n"])
    assert raw.getvalue() == "a\\x1b[1m b\n\\x9b\n"
    assert printable_stream(stream) is stream
    assert raw_stream(stream) is raw
    assert raw_stream(raw) is raw
    assert not stream.isatty()


def test_errors_print_no_controls() -> None:
    for kind in (FdatrdError, ArgumentError, EncodeError):
        assert str(kind(f"no file {EVIL!s}")) == r"no file \x1b]0;OWNED\x07\x1b[31m"


def on_terminal(*words: str | Path, cwd: Path) -> bytes:
    """Run `vsfdatrd` on a terminal and return its output."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-m", "vsfdatrd.cli", *words],
        cwd=cwd,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        env=os.environ | {"TERM": "xterm", "NO_COLOR": "1"},
    ):
        os.close(theirs)
        output = b""
        try:
            while piece := os.read(ours, 1 << 16):
                output += piece
        except OSError:  # the other end is closed
            pass
    os.close(ours)
    return output


def test_names_and_metadata_on_a_terminal(tmp_path: Path, make_tensors: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FDATRD_CACHE", str(tmp_path / "cache"))
    film, network = f"{EVIL}film.mkv", f"{EVIL}net.safetensors"
    (tmp_path / film).write_bytes(b"no film")
    save_file(make_tensors(), tmp_path / network, metadata={"model": EVIL})
    odd = make_tensors() | {f"{EVIL}conv.weight": np.zeros((3, 3), np.float32)}
    save_file(odd, tmp_path / "odd.safetensors", metadata={"a": EVIL})
    for words, messages in (
        (("encode", film, "out.mkv", "--model", "small"), "film.mkv"),
        (("info", network), "architecture"),
        (("info", "odd.safetensors"), "OWNED"),
        (("info", "x", film), "OWNED"),
    ):
        output = on_terminal(*words, cwd=tmp_path)
        assert b"\x1b" not in output.replace(b"\x1b[?25", b"").replace(b"\x1b[2K", b""), (words, output)
        assert b"\x07" not in output
        assert messages.encode() in output, (words, output)


@pytest.mark.parametrize("encoding", ["latin-1", "utf-8", "ascii:strict", "ascii:surrogateescape"])
def test_json_is_json_in_every_encoding(tmp_path: Path, encoding: str) -> None:
    names = ["café.mkv", "魔女.mkv", EVIL + ".mkv", os.fsdecode(b"caf\xe9.mkv")]
    for name in names:
        (tmp_path / name).write_bytes(b"no film")
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "vsfdatrd.cli",
            "encode",
            *names,
            "--out",
            "hd",
            "--preset",
            "ffv1",
            "--json",
            "--model",
            "small",
        ],
        cwd=tmp_path,
        capture_output=True,
        check=False,
        env=os.environ | {"PYTHONIOENCODING": encoding},
    )
    assert done.returncode == 1
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["input"] for event in events if event["event"] == "input"] == names
    assert len([event for event in events if event["event"] == "failed"]) == len(names)
    assert b"Traceback" not in done.stderr
