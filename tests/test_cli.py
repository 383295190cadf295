"""The command line: results on stdout, everything else on stderr, exit status 0, 1 or 2."""

import errno
import json
import logging
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vsfdatrd import __version__, cli
from vsfdatrd.backends.native import kernels as native_kernels
from vsfdatrd.cache.engine_cache import EngineCache
from vsfdatrd.cache.manifest import Key
from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.cli import main
from vsfdatrd.weights import catalog

pytestmark = pytest.mark.usefixtures("cache")


def command(*arguments: str) -> subprocess.CompletedProcess[str]:
    """The program as a user starts it."""
    return subprocess.run(
        [sys.executable, "-m", "vsfdatrd.cli", *arguments], capture_output=True, text=True, timeout=250
    )


def rows(text: str) -> dict[str, str]:
    """``name  value`` lines as a dictionary."""
    parted = (line.partition("  ") for line in text.splitlines())
    return {name.strip(): value.strip() for name, _, value in parted}


# ---- info ----------------------------------------------------------------------------------------------------------


def test_info_of_medium_is_that_of_the_stand_in(shared: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = shared / "weights/fdat_rd_medium_2x_standin.safetensors"
    assert main(["info", str(file), "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    result = json.loads(out)
    from safetensors.numpy import load_file

    from vsfdatrd.archs.fdat_rd import META_UPSAMPLE

    tensors = {k: v for k, v in load_file(file).items() if k != META_UPSAMPLE and not k.endswith(".init_pos")}
    assert result["file"] == str(file)
    assert result["architecture"] == "FDAT-RD"
    assert result["scale"] == 2
    assert result["parameters"] == sum(values.size for values in tensors.values())
    assert result["padded to multiples of"] == 60
    assert (result["embed_dim"], result["heads"], result["groups"]) == (128, 4, 4)
    assert result["blocks of a group"].split() == ["spatial", "channel", "dictionary"] * 2
    assert (result["dictionary tokens"], result["upsampler"], result["unshuffle"]) == (128, "transpose+conv", 2)
    assert result["TFLOP per 720×540 frame"] == pytest.approx(1.06, abs=0.01)
    assert re.fullmatch(r"attention in \d+, feed-forward networks in [1-9]\d* of 24 blocks", result["at work"])


def test_info_as_text_says_the_same_as_json(tiny_model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", str(tiny_model)]) == 0
    text, err = capsys.readouterr()
    assert err == ""
    assert main(["info", str(tiny_model), "--json"]) == 0
    plain: dict[str, Any] = json.loads(capsys.readouterr().out)
    described = open_checkpoint(tiny_model).descriptor
    assert rows(text) == {name: f"{value:,}" if isinstance(value, int) else str(value) for name, value in plain.items()}
    assert plain["sha256"] == described.sha256
    assert plain["parameters"] == described.parameters
    assert rows(text)["parameters"] == f"{described.parameters:,}"
    assert rows(text)["padded to multiples of"] == "30"
    assert rows(text)["blocks of a group"] == "spatial channel dictionary"


def test_info_of_a_file_that_cannot_be_used(tmp_path: Path) -> None:
    (tmp_path / "broken.safetensors").write_bytes(b"\0" * 100)
    done = command("info", str(tmp_path / "broken.safetensors"))
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith("vsfdatrd: ")
    assert len(done.stderr.splitlines()) == 1
    assert "broken.safetensors" in done.stderr


@pytest.mark.parametrize(("name", "message"), [("mediun", "did you mean 'medium'?"), ("./none.pth", "none.pth")])
def test_info_of_what_is_not_there(name: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["info", name]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("vsfdatrd: ")
    assert message in err
    assert len(err.splitlines()) == 1


# ---- cache ---------------------------------------------------------------------------------------------------------


def fill(directory: Path, *shapes: str) -> None:
    """Fill a cache with fake engines of 3000 bytes."""

    def build(directory: Path) -> None:
        (directory / "model.blob").write_bytes(b"x" * 3000)

    for shape in shapes:
        key = Key("a" * 64, "1", shape, "fp32", "openvino 2026.4.0", "some CPU (FP32)", "streams=auto")
        EngineCache(directory).open(key, build, lambda _: None)


def test_cache_lists_and_clears(cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fill(cache, "60x60", "720x540")
    assert main(["cache", "list"]) == 0
    listed, err = capsys.readouterr()
    assert err == ""
    first, second, total = listed.splitlines()
    for line in (first, second):
        for part in ("fp32", "openvino 2026.4.0", "weights aaaaaaaaaaaa", "some CPU (FP32)", "KiB", "last used 20"):
            assert part in line
    assert {"60x60", "720x540"} == {word for word in listed.split() if word in ("60x60", "720x540")}
    assert "720x540" in first, "the last used one comes first"
    assert total.startswith("2 engines, ")
    assert str(cache) in total

    assert main(["cache", "clear"]) == 0
    assert capsys.readouterr().out == f"removed 2 engines from {cache}\n"
    assert list(cache.glob("store-1/engines/*")) == []
    assert main(["cache", "list"]) == 0
    assert capsys.readouterr().out.startswith("0 engines, 0 B, in ")


def test_cache_of_another_directory(tmp_path: Path, cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    other = tmp_path / "other"
    fill(cache, "60x60")
    fill(other, "90x90")
    assert main(["cache", "clear", "--cache", str(other)]) == 0
    assert capsys.readouterr().out == f"removed 1 engines from {other}\n"
    assert len(EngineCache(cache).entries()) == 1


def test_cache_that_is_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("x")
    assert main(["cache", "clear", "--cache", str(tmp_path / "file")]) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert str(tmp_path / "file") in err


# ---- doctor --------------------------------------------------------------------------------------------------------


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    status = main(["doctor", *arguments])
    return status, capsys.readouterr().out


def test_doctor_tries_a_frame_with_the_engine_there_is(
    identity_2x: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With another file in the place of medium's weights, which may not be there."""
    from vsfdatrd import checkpoint as checkpoint_module

    monkeypatch.setattr(checkpoint_module, "resolve_model", lambda model: identity_2x)
    status, text = doctor(capsys)
    assert status == 0, text
    assert "self-test: a 60×60 frame became 120×120 in " in text
    assert text.startswith(f"vsfdatrd {__version__}, Python {sys.version_info.major}.{sys.version_info.minor}")
    assert f"  numpy {np.__version__}" in text
    assert "  openvino: usable" in text
    assert "  torch: usable" in text
    if native_kernels.unsupported_reason() is None:
        assert f"  native: usable, with {native_kernels.instruction_set()}" in text
    assert f"cache: {cache}, 0 engines" in text
    for name, model in catalog.CATALOG.items():
        assert f"  {name}: {model.file}" in text
    assert len(EngineCache(cache).entries()) == 1, "the test frame's engine went somewhere else"


def test_doctor_says_what_fails(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from vsfdatrd import checkpoint as checkpoint_module
    from vsfdatrd.errors import CheckpointError

    def missing(model: str) -> Path:
        raise CheckpointError(f"the weights of model={model!r} are missing")

    monkeypatch.setattr(checkpoint_module, "resolve_model", missing)
    status, text = doctor(capsys)
    assert status == 1
    assert "self-test: failed: fdatrd.upscale: the weights of model='medium' are missing" in text


def test_doctor_with_another_cache(
    identity_2x: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from vsfdatrd import checkpoint as checkpoint_module

    monkeypatch.setattr(checkpoint_module, "resolve_model", lambda model: identity_2x)
    status, text = doctor(capsys, "--cache", str(tmp_path / "other"))
    assert status == 0, text
    assert f"cache: {tmp_path / 'other'}, 0 engines" in text
    assert len(EngineCache(tmp_path / "other").entries()) == 1
    assert not cache.exists()


def test_doctor_as_a_program() -> None:
    done = command("doctor")
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"vsfdatrd {__version__}")
    assert lines[-1].startswith("self-test: ")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "became 120×120" in lines[-1]
    assert "Traceback" not in done.stderr


# ---- usage ---------------------------------------------------------------------------------------------------------


def test_version() -> None:
    done = command("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"vsfdatrd {__version__}\n", "")


@pytest.mark.parametrize("arguments", [[], ["upscale"], ["info"], ["cache"], ["cache", "burn"], ["info", "a", "--xml"]])
def test_wrong_usage(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "usage: vsfdatrd" in err


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (["-v", "models", "list"], 0),
        (["models", "list", "-v"], 0),
        (["models", "info", "small", "--verbose"], 0),
        (["-v", "encode", "missing.mkv", "out.mkv", "--", "-crf", "14"], 1),
    ],
)
def test_verbose_may_stand_anywhere(arguments: list[str], status: int, capsys: pytest.CaptureFixture[str]) -> None:
    try:
        assert main(arguments) == status
    finally:
        logging.getLogger("vsfdatrd").setLevel(logging.NOTSET)
    if status:
        assert "the input 'missing.mkv' is not there" in capsys.readouterr().err


def test_the_program_is_installed() -> None:
    from importlib.metadata import entry_points

    (entry,) = entry_points(group="console_scripts", name="vsfdatrd")
    assert entry.load() is main


def test_ctrl_c_is_no_traceback(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupted(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("vsfdatrd.cli._run_doctor", interrupted)
    assert main(["doctor"]) == 130
    assert capsys.readouterr().err == "vsfdatrd: stopped\n"


def test_a_character_that_the_encoding_lacks_ends_nothing() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "vsfdatrd.cli", "info", "small"],
        capture_output=True,
        encoding="ascii",
        timeout=250,
        env=os.environ | {"PYTHONIOENCODING": "ascii"},
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "TFLOP per 720\\xd7540 frame" in done.stdout


def test_what_windows_says_of_a_closed_pipe_is_understood(monkeypatch: pytest.MonkeyPatch) -> None:
    closed, wrong = OSError(errno.EINVAL, "Invalid argument"), OSError(errno.EINVAL, "Invalid argument", "a<b.mkv")
    assert cli._is_closed_pipe(closed) == (os.name == "nt")
    assert cli._is_closed_pipe(BrokenPipeError())
    with monkeypatch.context() as windows:
        windows.setattr(os, "name", "nt")
        result = cli._is_closed_pipe(closed), cli._is_closed_pipe(wrong)
    assert result == (True, False)


def test_a_closed_pipe_is_no_traceback(cache: Path) -> None:
    fill(cache, "60x60")
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as target:
        done = subprocess.run(
            [sys.executable, "-m", "vsfdatrd.cli", "cache", "list"],
            stdout=target,
            stderr=subprocess.PIPE,
            text=True,
            timeout=250,
        )
    assert "Traceback" not in done.stderr
    assert done.returncode != 0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has this device")
@pytest.mark.parametrize(
    ("arguments", "said"), [(["cache", "list"], "vsfdatrd: No space left on device\n"), (["-h"], "")]
)
def test_a_full_disk_is_one_sentence(arguments: list[str], said: str, cache: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("wb") as target:
        done = subprocess.run(
            [sys.executable, "-m", "vsfdatrd.cli", *arguments],
            stdout=target,
            stderr=subprocess.PIPE,
            text=True,
            timeout=250,
            env=environment,
        )
    assert done.stderr == said
    assert done.returncode == bool(said)
