"""Environment, flags and streams of child processes on every system."""

import subprocess
import sys
from pathlib import Path

import pytest

from vsfdatrd.workers.spawn import child_environment, creation_flags, describe_exit, find_python


@pytest.mark.parametrize(
    ("code", "words"),
    [(-9, "signal 9"), (0, "status 0"), (3, "status 3"), (0xC0000005, "status 0xC0000005")],
)
def test_ending_is_told_as_each_system_knows_it(code: int, words: str) -> None:
    assert describe_exit(code) == words


@pytest.mark.skipif(sys.platform == "win32", reason="descriptors are not closed by a shell there")
@pytest.mark.parametrize("closed", [False, True])
def test_a_child_has_a_stderr_even_where_we_have_none(closed: bool) -> None:
    """A child that finds its stderr closed gives the number to the next file that it opens, and complains into it."""
    inner = "import os; os.fstat(2); print(os.path.samestat(os.fstat(2), os.stat(os.devnull)))"
    outer = (
        "import subprocess, sys; from vsfdatrd.workers.spawn import child_stderr; "
        f"sys.exit(subprocess.run([sys.executable, '-c', {inner!r}], stderr=child_stderr()).returncode)"
    )
    command = f'exec {sys.executable} -c "$0"' + (" 2>&-" if closed else "")
    done = subprocess.run(["sh", "-c", command, outer], capture_output=True, timeout=250)
    assert done.returncode == 0
    assert done.stdout.decode().strip() == str(closed)


def test_flags_are_those_that_this_system_takes() -> None:
    assert subprocess.run([sys.executable, "-c", ""], creationflags=creation_flags(), timeout=250).returncode == 0


@pytest.mark.parametrize("host", ["", "/usr/bin/vspipe", "/opt/mpv/mpv"])
def test_python_is_found_whatever_the_host_is(monkeypatch: pytest.MonkeyPatch, host: str) -> None:
    monkeypatch.setattr(sys, "executable", host)
    result = find_python()
    assert Path(result).parent == Path(sys.prefix, "bin")
    done = subprocess.run([result, "-c", "import sys; print(sys.prefix)"], capture_output=True, text=True, timeout=250)
    assert done.stdout.strip() == sys.prefix


@pytest.mark.parametrize("place", ["Scripts/python.exe", "python.exe"], ids=["environment", "installation"])
def test_python_is_found_where_windows_has_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, place: str) -> None:
    (tmp_path / "Scripts").mkdir()
    (tmp_path / place).touch()
    monkeypatch.setattr(sys, "executable", "vsedit.exe")
    monkeypatch.setattr(sys, "prefix", str(tmp_path))
    assert Path(find_python()) == tmp_path / place


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, "glibc.malloc.hugetlb=1"),
        ("glibc.malloc.arena_max=2", "glibc.malloc.arena_max=2:glibc.malloc.hugetlb=1"),
        ("glibc.malloc.hugetlb=0", "glibc.malloc.hugetlb=0"),
    ],
)
def test_huge_pages_are_requested_unless_the_user_decides(
    monkeypatch: pytest.MonkeyPatch, before: str | None, after: str
) -> None:
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if before:
        monkeypatch.setenv("GLIBC_TUNABLES", before)
    assert child_environment(huge_pages=True)["GLIBC_TUNABLES"] == after
    assert child_environment().get("GLIBC_TUNABLES") == before


@pytest.mark.skipif(sys.platform != "linux", reason="reads the environment of another process")
def test_the_worker_of_openvino_requests_huge_pages() -> None:
    from vsfdatrd.backends.openvino import backend

    try:
        backend._standby.describe()  # right after a process has started, the system shows no environment
        environment = Path(f"/proc/{backend._standby.start().pid}/environ").read_bytes()
    finally:
        backend.shutdown()
    assert b"glibc.malloc.hugetlb=" in environment


def test_the_running_python_is_taken_where_there_is_one() -> None:
    assert find_python() == sys.executable
