"""What every child process is given and told of, whatever the system is."""

import subprocess
import sys

import pytest

from vsfdatrd.workers.spawn import describe_exit, no_window


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
        "import subprocess, sys; from vsfdatrd.workers.spawn import stderr; "
        f"sys.exit(subprocess.run([sys.executable, '-c', {inner!r}], stderr=stderr()).returncode)"
    )
    command = f'exec {sys.executable} -c "$0"' + (" 2>&-" if closed else "")
    done = subprocess.run(["sh", "-c", command, outer], capture_output=True, timeout=60)
    assert done.returncode == 0
    assert done.stdout.decode().strip() == str(closed)


def test_flags_are_those_that_this_system_takes() -> None:
    assert subprocess.run([sys.executable, "-c", ""], creationflags=no_window(), timeout=60).returncode == 0
