"""Interrupted encodes (killed, stopped, disk full, a crashed program) and their continuation."""

import contextlib
import json
import os
import random
import shutil
import signal
import stat
import subprocess
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from tests.encode.conftest import CHUNK, HEIGHT, WIDTH, Encode, Popen, command, decoded, moving, write
from tests.encode.joining import LENGTH
from vsfdatrd.cli import main
from vsfdatrd.encode.journal import Journal
from vsfdatrd.encode.workspace import open_workspace
from vsfdatrd.system.programs import ffmpeg
from vsfdatrd.system.signals import interrupt_on_sigterm

KILLS = int(os.environ.get("FDATRD_KILLS", "3"))
"""How often the encode is killed; the suite's few do not find what a hundred do."""


@pytest.fixture
def start(identity_2x: Path, popen: Popen) -> Any:
    """Start an encode that reports its events as JSON."""
    return lambda *arguments: popen(command(identity_2x, *arguments, "--preset", "x264", "--json", *CHUNK))


def journal_numbers(output: Path) -> set[int]:
    """Numbers of the parts that the journal has, as after a power cut: from the file alone."""
    path = output.with_name(output.name + ".vsfdatrd") / "journal.json"
    return {made.chunk.number for made in Journal(path).done_chunks()}


def events(text: str) -> list[dict[str, Any]]:
    """Parse the events of --json; the last line may be truncated."""
    result = []
    for line in text.splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            result.append(json.loads(line))
    return result


def wait_for_part(process: subprocess.Popen[str], count: int = 1) -> None:
    """Read the events of an encode until `count` chunks are done."""
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["event"] == "part":
            count -= 1
            if not count:
                return
    raise AssertionError(process.stderr.read() if process.stderr else "")


def finish(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    try:
        out, error = process.communicate(timeout=250)
    except subprocess.TimeoutExpired as expired:  # what it said so far shows where it waits
        os.killpg(process.pid, signal.SIGABRT)
        raise AssertionError(f"no end: {expired.output!r}, {process.communicate()[1]}") from None
    assert process.returncode == 0, error
    return events(out)


@pytest.mark.timeout(600 + 60 * KILLS)
def test_killed_at_any_moment_nothing_is_lost_but_the_part_at_work(
    start: Any, film: Path, reference: list[str], tmp_path: Path
) -> None:
    chance = random.Random(7)
    kills = finished = 0
    output = tmp_path / "out.mkv"
    before: set[int] = set()
    made: list[int] = []
    while kills < KILLS or not finished:
        process = start(film, output)
        try:
            last = kills >= KILLS
            out, error = process.communicate(timeout=300 if last else chance.uniform(0.2, 7))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            out, error = process.communicate()
            kills += 1
        messages = events(out)
        names = [event["event"] for event in messages]
        assert "anew" not in names, messages
        assert "failed" not in names, (messages, error)
        if "resuming" in names:
            assert next(event["parts"] for event in messages if event["event"] == "resuming") >= len(before)
        parts = [event["part"] - 1 for event in messages if event["event"] == "part"]
        assert not before & set(parts)  # what the journal had was not made again
        made += parts
        assert len(made) == len(set(made))
        if process.returncode == 0 and "finished" in names:
            assert decoded(output) == reference
            assert [path.name for path in tmp_path.iterdir()] == ["out.mkv"]
            output.unlink()
            finished, before, made = finished + 1, set(), []
            continue
        assert process.returncode == -signal.SIGKILL, error
        now = journal_numbers(output)
        if output.exists():  # killed between the last rename and the exit
            continue
        assert before <= now
        assert set(parts) <= now  # a part is told of only once it is recorded
        before = now
    assert kills == KILLS


def test_ctrl_c_is_a_sentence_ends_all_programs_and_goes_on_later(
    start: Any, film: Path, reference: list[str], tmp_path: Path
) -> None:
    process = start(film, tmp_path / "out.mkv")
    wait_for_part(process)
    children = psutil.Process(process.pid).children(recursive=True)
    os.killpg(process.pid, signal.SIGINT)
    _, error = process.communicate(timeout=200)
    assert process.returncode == 130
    assert error.rstrip().endswith("vsfdatrd: stopped; run the same command again to continue")
    assert "Traceback" not in error
    _, alive = psutil.wait_procs(children, timeout=100)
    assert not alive
    messages = finish(start(film, tmp_path / "out.mkv"))
    assert any(event["event"] == "resuming" and event["parts"] >= 1 for event in messages)
    assert decoded(tmp_path / "out.mkv") == reference


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="Windows has no SIGHUP")
def test_a_closed_terminal_does_not_stop_what_nohup_started() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupt_on_sigterm():
            signal.raise_signal(signal.SIGHUP)
    except KeyboardInterrupt:
        pytest.fail("the signal was ignored, and no longer is")
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_process_on_one_output_refuses(film: Path, encode: Encode, tmp_path: Path) -> None:
    with open_workspace(tmp_path / "out.mkv") as place:
        second = encode(film, tmp_path / "out.mkv")
        assert place.folder.is_dir()
    assert second.returncode == 1
    assert f"another process is making {tmp_path / 'out.mkv'} already" in second.stderr


def test_other_settings_or_another_source_begin_anew_and_say_so(
    start: Any, film: Path, encode: Encode, reference: list[str], tmp_path: Path
) -> None:
    source, output = tmp_path / "in.mkv", tmp_path / "out.mkv"
    shutil.copy(film, source)

    def interrupt() -> None:
        process = start(source, output)
        wait_for_part(process)
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()

    interrupt()
    assert journal_numbers(output)
    message = encode(source, output, "--preset", "ffv1")
    assert message.returncode == 0, message.stderr
    assert "starting over, because these differ from the interrupted run: " in message.stderr
    changed = message.stderr.split("interrupted run: ")[1].splitlines()[0]
    assert "preset" in changed
    assert "--chunk" in changed  # as the user gives it, not by the setting's name
    refused = encode(source, output, "--preset", "x264")
    assert refused.returncode == 1
    assert "exists, and was made from another source or with other settings" in refused.stderr
    output.unlink()
    interrupt()
    write(moving(LENGTH)[::-1], source, "24000/1001")
    messages = finish(start(source, output))
    assert [event["changed"] for event in messages if event["event"] == "anew"] == [["source"]]
    assert len(decoded(output)) == LENGTH
    assert decoded(output) != reference


def test_a_run_that_ended_before_its_first_chunk_is_not_called_interrupted(
    film: Path, encode: Encode, tmp_path: Path
) -> None:
    for preset in ("ffv1", "x264"):
        failed = encode(film, tmp_path / "out.mkv", "--preset", preset, "--device", "7")
        assert "device=[7] does not exist" in failed.stderr
        assert "starting over" not in failed.stderr


def test_damaged_parts_and_a_damaged_journal_are_made_again(
    start: Any, film: Path, reference: list[str], tmp_path: Path
) -> None:
    output = tmp_path / "out.mkv"
    place = tmp_path / "out.mkv.vsfdatrd"
    process = start(film, output)
    wait_for_part(process, 2)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    part = place / "chunks" / "00001.mkv"
    kept = len(journal_numbers(output))
    content = bytearray(part.read_bytes())
    content[len(content) // 2] ^= 255
    part.write_bytes(content)
    process = start(film, output)
    messages = []
    for line in process.stdout:
        messages.append(json.loads(line))
        if messages[-1]["event"] == "part":
            break
    assert next(event["parts"] for event in messages if event["event"] == "resuming") == kept - 1
    assert messages[-1]["part"] == 1
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    record = (place / "journal.json").read_bytes()
    (place / "journal.json").write_bytes(record[: len(record) // 2])
    messages = finish(start(film, output))
    assert any("is damaged" in event["text"] for event in messages if event["event"] == "anew")
    assert decoded(output) == reference


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount a small disk")
def test_a_full_disk_is_a_sentence_and_the_next_run_goes_on(encode: Encode, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=900k", "none", str(disk)], capture_output=True).returncode:
        pytest.skip("this machine does not mount a tmpfs")
    noise = np.random.default_rng(0).integers(16, 235, (LENGTH, HEIGHT, WIDTH), np.uint8)
    film = write(noise, tmp_path / "noise.mkv", "24000/1001")
    try:
        full = encode(film, disk / "out.mkv", *CHUNK)
        assert full.returncode == 1
        assert "no space is left on the disk" in full.stderr or "free some space" in full.stderr
        assert "Traceback" not in full.stderr
        kept = journal_numbers(disk / "out.mkv")
        assert kept
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        again = encode(film, disk / "out.mkv", *CHUNK)
        assert again.returncode == 0, again.stderr
        assert f"{len(kept)} of 4 chunks are there already" in again.stderr
        assert len(decoded(disk / "out.mkv")) == LENGTH
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


@pytest.fixture
def frail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An ffmpeg on PATH that dies in the middle for as many times as there are files in this folder."""
    lives, programs = tmp_path / "lives", tmp_path / "programs"
    lives.mkdir()
    programs.mkdir()
    (programs / "ffmpeg").write_text(
        "#!/bin/sh\n"
        f'case "$*" in *yuv4mpegpipe*) for life in {lives}/*; do if [ -e "$life" ]; then\n'
        '  rm "$life"; head -c 200000 > /dev/null; echo "the encoder gave up" >&2; exit 9; fi; done;; esac\n'
        f'exec {ffmpeg()} "$@"\n'
    )
    (programs / "ffmpeg").chmod(stat.S_IRWXU)
    monkeypatch.setenv("PATH", str(programs), prepend=os.pathsep)
    return lives


def test_a_dying_ffmpeg_is_tried_again_then_a_sentence(encode: Encode, film: Path, frail: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.mkv"
    for n in range(8):
        (frail / str(n)).touch()
    result = encode(film, output, *CHUNK)
    assert result.returncode == 1
    assert "failed: ffmpeg ended with status 9: the encoder gave up" in result.stderr.splitlines()[-1]
    for life in frail.iterdir():
        life.unlink()
    (frail / "one").touch()
    again = encode(film, output, *CHUNK)
    assert again.returncode == 0, again.stderr
    assert "failed: ffmpeg ended with status 9: the encoder gave up; trying it once more" in again.stderr
    assert len(decoded(output)) == LENGTH


def test_a_killed_vspipe_is_tried_again(start: Any, film: Path, reference: list[str], tmp_path: Path) -> None:
    process = start(film, tmp_path / "out.mkv")
    wait_for_part(process)
    known = {child.pid for child in psutil.Process(process.pid).children()}
    victim = None
    while victim is None and process.poll() is None:  # the next one, so that it has not ended by itself already
        time.sleep(0.005)
        for child in psutil.Process(process.pid).children():
            with contextlib.suppress(psutil.NoSuchProcess):
                victim = child if child.pid not in known and child.name() == "vspipe" else victim
    assert victim is not None
    victim.kill()
    messages = finish(process)
    texts = [event["text"] for event in messages if event["event"] == "retry"]
    assert any("vspipe was ended by signal 9" in text for text in texts), messages
    assert decoded(tmp_path / "out.mkv") == reference


def test_errors_come_before_any_work(
    identity_2x: Path, film: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = {
        ("there is no folder", film, tmp_path / "no" / "out.mkv"),
        ("no known suffix", film, tmp_path / "out.avi"),
        ("is the input itself", film, film),
        ("is not there", tmp_path / "missing.mkv", tmp_path / "out.mkv"),
        ("cannot be read as video", Path(__file__), tmp_path / "out.mkv"),
        ("give an input and an output", film, "--keep-sar"),
        ("give an output that ends in .mkv", film, tmp_path / "out.mp4"),
    }
    for words, *arguments in cases:
        assert main(command(identity_2x, *map(str, arguments))[3:]) == 1, words
        assert words in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.iterdir())
