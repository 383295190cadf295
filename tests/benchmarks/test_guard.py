"""The guard measures the code of another commit."""

import subprocess
from pathlib import Path

import pytest

from benchmarks import guard
from benchmarks.errors import BenchmarkError


def test_guard_names_a_commit_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match="nowhere is not a commit"):
        guard.extract_source("nowhere", tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("unoptimized")
def test_guard_measures_the_code_of_the_other_commit(tmp_path: Path) -> None:
    """An environment made from changed files runs those, plugin and all, and everything else of this one."""
    source = tmp_path / "source"
    listed = subprocess.run(["git", "ls-files"], cwd=guard.ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this is no git checkout")
    for name in listed.stdout.split():
        if (
            name.startswith(("vsfdatrd/", "hatch_build.py", "pyproject", "README", "LICENSE", "models/"))
            and (guard.ROOT / name).is_file()
        ):
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((guard.ROOT / name).read_bytes())
    version = source / "vsfdatrd" / "__init__.py"
    version.write_text(version.read_text().replace('__version__ = "', '__version__ = "99.'))
    plugin = source / "vsfdatrd" / "_plugin.py"
    plugin.write_text(plugin.read_text() + "\nprint('the changed plugin')\n")
    python = guard.create_environment(source, tmp_path / "environment")
    script = (
        "import vapoursynth as vs, vsfdatrd; print(vsfdatrd.__version__, vsfdatrd.__file__)\n"
        "clip = vs.core.std.BlankClip(width=60, height=60)\n"
        "try:\n    vs.core.fdatrd.upscale(clip, model='nowhere.pth')\nexcept vs.Error as error:\n    print(error)"
    )
    done = subprocess.run([python, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.startswith("99.")
    assert str(tmp_path / "environment") in done.stdout.splitlines()[0]
    assert "the changed plugin" in done.stdout + done.stderr
    assert "fdatrd.upscale:" in done.stdout
