"""Encodes on a Ray cluster: killed workers, lost machines, machines that lack something."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.encode.conftest import CHUNK, Popen, command, decoded
from tests.encode.machines import Machine, Machines, machines, networks_can_be_made, until
from vsfdatrd.encode.journal import DoneChunk
from vsfdatrd.encode.ray import connect
from vsfdatrd.encode.ray.receive import ChunkDownload
from vsfdatrd.encode.ray.supervisor import reserve_cpus
from vsfdatrd.encode.scenes import Chunk
from vsfdatrd.errors import ArgumentError, EncodeError
from vsfdatrd.system.files import sha256_file

with_ray = pytest.mark.skipif(find_spec("ray") is None, reason="Ray is not installed (pip install ray)")


@pytest.fixture(scope="session")
def temporary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where machines keep what they work on."""
    return tmp_path_factory.mktemp("temporary")


@pytest.fixture(scope="session")
def cluster(engines: Path, temporary: Path) -> Iterator[Machines]:
    """A cluster of one machine that claims to have two GPUs, which the engine does not need."""
    with machines() as cluster:
        cluster.start("--num-cpus", "2", "--num-gpus", "2", FDATRD_CACHE=str(engines), TMPDIR=str(temporary))
        yield cluster


@pytest.fixture
def start(identity_2x: Path, tmp_path: Path, popen: Popen) -> Any:
    """Start an encode on a cluster outside the checkout, because Ray's workers search modules in that directory."""

    def encode(cluster: Machines, *arguments: str | Path, json: bool = True) -> subprocess.Popen[str]:
        words = command(identity_2x, *arguments, "--preset", "x264", *CHUNK, "--ray", cluster.address)
        return popen([*cluster.inside(), *words, *(["--json"] if json else [])], cwd=tmp_path)

    return encode


def finish(process: subprocess.Popen[str]) -> list[dict[str, Any]]:
    out, error = process.communicate(timeout=200)
    assert process.returncode == 0, (out, error)
    assert error == ""  # Ray says nothing either
    return [json.loads(line) for line in out.splitlines()]


def texts(reported: list[dict[str, Any]], event: str) -> list[str]:
    return [one["text"] for one in reported if one["event"] == event]


def wait_for(process: subprocess.Popen[str], event: str) -> list[dict[str, Any]]:
    """Read what an encode tells until something happens."""
    reported = []
    assert process.stdout is not None
    for line in process.stdout:
        reported.append(json.loads(line))
        if reported[-1]["event"] == event:
            return reported
    raise AssertionError((reported, process.stderr.read() if process.stderr else ""))


def freeze_encoders(machines: Sequence[Machine]) -> list[psutil.Process]:
    """Suspend the ffmpeg of every machine as soon as it encodes, so that none is done before the last one begins."""
    frozen: dict[Machine, psutil.Process] = {}

    def all_frozen() -> bool:
        for machine in machines:
            for encoder in [] if machine in frozen else machine.named("yuv4mpegpipe")[:1]:
                with contextlib.suppress(psutil.Error):  # it has just ended, and the next one will be found
                    encoder.suspend()
                    frozen[machine] = encoder
        return len(frozen) == len(machines)

    until(all_frozen, 120)
    return [frozen[machine] for machine in machines]


def nothing_is_left(temporary: Path) -> bool:
    return not [path for path in temporary.rglob("*") if path.is_file() and path.suffix != ".lock"]


@with_ray
def test_the_same_film_comes_out(
    start: Any, cluster: Machines, film: Path, reference: list[str], temporary: Path, tmp_path: Path
) -> None:
    process = start(cluster, film, tmp_path / "out.mkv", json=False)
    out, error = process.communicate(timeout=120)
    assert process.returncode == 0, error
    assert out == ""
    beginnings = (
        "reading ",
        "source: 96×64",
        "fields: ",
        "output: ",
        "rendering one frame",
        "Ray: 2 chunks at once",
        "chunk ",
        "joining 4 chunks",
        str(tmp_path / "out.mkv"),
    )
    assert [line for line in error.splitlines() if not line.startswith(beginnings)] == []
    assert error.count("\nchunk ") == 4
    assert decoded(tmp_path / "out.mkv") == reference
    assert nothing_is_left(temporary)
    assert [path.name for path in tmp_path.iterdir()] == ["out.mkv"]


@with_ray
def test_a_killed_worker_costs_its_part_and_leaves_no_programs(
    start: Any, cluster: Machines, film: Path, reference: list[str], temporary: Path, tmp_path: Path
) -> None:
    process = start(cluster, film, tmp_path / "out.mkv")
    reported = wait_for(process, "part")
    until(lambda: cluster.head.named("vspipe"))
    supervisor = next(
        parent
        for pipe in cluster.head.named("vspipe")
        for parent in pipe.parents()
        if "vsfdatrd.encode.ray.supervisor" in parent.cmdline()
    )
    programs = [supervisor, *supervisor.children(recursive=True)]
    supervisor.parent().kill()
    _, alive = psutil.wait_procs(programs, timeout=10)
    assert not alive
    reported += finish(process)
    assert any(
        "was lost: the worker process there died; trying it once more" in text for text in texts(reported, "retry")
    )
    assert sorted(one["part"] for one in reported if one["event"] == "part") == [1, 2, 3, 4]
    assert decoded(tmp_path / "out.mkv") == reference
    assert nothing_is_left(temporary)


@with_ray
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_stopped_and_gone_on_with_here(
    start: Any, cluster: Machines, film: Path, reference: list[str], encode: Any, tmp_path: Path, how: int
) -> None:
    process = start(cluster, film, tmp_path / "out.mkv")
    wait_for(process, "part")
    until(lambda: cluster.head.named("vspipe"))
    os.killpg(process.pid, how)
    _, error = process.communicate(timeout=60)
    if how == signal.SIGKILL:
        assert process.returncode == -how
    else:
        assert (process.returncode, error) == (130, "vsfdatrd: stopped; run the same command again to continue\n")
    until(lambda: not cluster.head.named("vspipe") and not cluster.head.named("ffmpeg"), 20)
    result = encode(film, tmp_path / "out.mkv", "--preset", "x264", *CHUNK)  # without Ray
    assert result.returncode == 0, result.stderr
    assert "of 4 chunks are there already" in result.stderr
    assert decoded(tmp_path / "out.mkv") == reference


@with_ray
@pytest.mark.slow
def test_machines_that_go_away_cost_their_chunks(
    start: Any, film: Path, reference: list[str], engines: Path, tmp_path: Path
) -> None:
    """One machine is switched off and another, where networks can be made, loses its connection: nothing is closed."""
    apart = networks_can_be_made()
    count = 3 if apart else 2
    environment = {"FDATRD_CACHE": str(engines), "TMPDIR": str(tmp_path)}
    with machines(apart) as cluster:
        # Ray waits for a minute and more before it gives a silent machine up.
        times = {"health_check_period_ms": 500, "health_check_timeout_ms": 2000, "health_check_failure_threshold": 3}
        cluster.start("--num-cpus", "1", "--system-config", json.dumps(times), **environment)
        others = [cluster.start("--num-cpus", "1", **environment) for _ in range(1, count)]
        process = start(cluster, film, tmp_path / "out.mkv")
        events = wait_for(process, "machines")
        assert events[-1]["text"] == f"Ray: {count} chunks at once, each with 1 CPU, on {count} machines"
        frozen = freeze_encoders([cluster.head, *others])
        if apart:
            cluster.cut(2)
        others[0].kill()
        frozen[0].resume()
        events += finish(process)
    lost = [text for text in texts(events, "retry") if "was lost: " in text]
    assert len(lost) >= len(others), events
    assert sorted(one["part"] for one in events if one["event"] == "part") == [1, 2, 3, 4]
    assert decoded(tmp_path / "out.mkv") == reference


@with_ray
@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root may hide a folder from a machine")
def test_machines_that_lack_something_are_left_out_and_say_why(
    start: Any, film: Path, reference: list[str], engines: Path, tmp_path: Path
) -> None:
    without = tmp_path / "without" / "vsfdatrd"
    without.mkdir(parents=True)
    (without / "__init__.py").write_text("raise ModuleNotFoundError(\"No module named 'vsfdatrd'\")\n")
    environment = {"FDATRD_CACHE": str(engines), "TMPDIR": str(tmp_path)}
    hide = f"mount -t tmpfs none '{film.parent}'"
    if subprocess.run(["unshare", "-m", "sh", "-c", hide], capture_output=True, check=False).returncode:
        pytest.skip("this machine does not mount a tmpfs")
    with machines() as cluster:
        cluster.start("--num-cpus", "0")
        cluster.start("--num-cpus", "1", PYTHONPATH=str(without.parent), **environment)
        cluster.start("--num-cpus", "1", before=hide, **environment)
        process = start(cluster, film, tmp_path / "nothing.mkv")
        out, error = process.communicate(timeout=120)
        assert process.returncode == 1, (out, error)
        left = texts([json.loads(line) for line in out.splitlines()], "left out")
        assert len(left) == 2
        assert any("is left out: it lacks vsfdatrd (No module named 'vsfdatrd'); pip install it" in one for one in left)
        assert any(
            f"is left out: it cannot read {film} (No such file or directory); put the film" in one for one in left
        )
        assert "offers neither GPUs nor CPUs" in error.splitlines()[-1]
        cluster.start("--num-cpus", "1", **environment)
        reported = finish(start(cluster, film, tmp_path / "out.mkv"))
    assert len(texts(reported, "left out")) == 2
    assert texts(reported, "machines") == ["Ray: 1 chunk at once, each with 1 CPU, on 1 machine"]
    assert decoded(tmp_path / "out.mkv") == reference


def run(*words: str) -> tuple[int, str]:
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr.strip()


def test_addresses_that_are_none(identity_2x: Path, film: Path, tmp_path: Path) -> None:
    words = command(identity_2x, film, tmp_path / "out.mkv")
    for address, sentence in (
        ("ray://here:10001", "is an address of Ray Client"),
        ("here", "is not an address"),
        ("here:port", "is not an address"),
    ):
        with pytest.raises(ArgumentError, match=sentence):
            connect.check_address(address)
        status, output = run(*words, "--ray", address)
        assert (status, sentence in output) == (1, True), output
    status, output = run(*words, "--ray", "auto", "--device", "0", "1")
    assert (status, "Ray assigns them" in output) == (1, True), output


def test_without_ray_there_is_a_sentence(identity_2x: Path, film: Path, tmp_path: Path) -> None:
    words = command(identity_2x, film, tmp_path / "out.mkv", "--ray", "auto")
    program = "import sys; sys.modules['ray'] = None; from vsfdatrd.cli import main; sys.exit(main(sys.argv[1:]))"
    status, output = run(sys.executable, "-c", program, *words[3:])
    assert (status, "--ray needs Ray, which is not installed; pip install 'vsfdatrd[ray]'" in output) == (1, True), (
        output
    )


@with_ray
def test_without_a_cluster_there_is_a_sentence(identity_2x: Path, film: Path, tmp_path: Path) -> None:
    words = command(identity_2x, film, tmp_path / "out.mkv")
    alone = ["unshare", "-p", "-f", "--mount-proc"]  # "auto" looks among the processes of the machine
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        alone = []
    for address in (*(["auto"] if alone else []), "127.0.0.1:9", f"{'x' * 64}:6379"):
        status, output = run(*alone, *words, "--ray", address)
        assert (status, output.count("\n")) == (1, 0)
        assert f"--ray {address} finds no Ray cluster" in output
    assert list(tmp_path.iterdir()) == []


@with_ray
def test_another_version_is_a_sentence(cluster: Machines, identity_2x: Path, film: Path, tmp_path: Path) -> None:
    words = command(identity_2x, film, tmp_path / "out.mkv", "--ray", cluster.address)
    program = "import ray, sys; ray.__version__ = '1.2.3'; from vsfdatrd.cli import main; sys.exit(main(sys.argv[1:]))"
    status, output = run(sys.executable, "-c", program, *words[3:])
    assert (status, output.count("\n")) == (1, 0), output
    assert "and here is Ray 1.2.3 on Python 3" in output
    assert output.endswith("install the same on all machines")


def test_parts_on_one_machine_keep_to_cpus_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "cpu_affinity", lambda process: [0, 2, 4, 6, 7])
    with reserve_cpus(2, tmp_path) as first, reserve_cpus(2, tmp_path) as second, reserve_cpus(2, tmp_path) as third:
        assert (first, second, third) == (frozenset({0, 2}), frozenset({4, 6}), None)
    with reserve_cpus(2, tmp_path) as again, reserve_cpus(None, tmp_path) as everything:
        assert (again, everything) == (frozenset({0, 2}), None)


def test_a_file_that_changes_on_its_way_is_not_taken(tmp_path: Path) -> None:
    content = b"some frames" * 10
    (tmp_path / "there").write_bytes(content)
    made = DoneChunk(Chunk(2, 20, 30), len(content), sha256_file(tmp_path / "there"), 0, 1.0)
    arrival = ChunkDownload(tmp_path, made)
    assert not arrival.add(content[:50])
    assert arrival.add(content[50:])
    assert arrival.finish() == made
    assert (tmp_path / "00003.mkv").read_bytes() == content
    other = ChunkDownload(tmp_path, made)
    assert other.add(content[::-1])
    with pytest.raises(EncodeError, match="chunk 3 was damaged in transfer"):
        other.finish()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["00003.mkv", "there"]
