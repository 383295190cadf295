"""The plugin and its commands in an environment that has no PyTorch, as ``pip install vsfdatrd`` makes one."""

import os
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
LACKS = ("torch", "functorch", "triton", "nvidia", "spandrel", "onnxruntime", "__editable__")
PIP = "pip install 'vsfdatrd[torch]'"

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="written for POSIX paths")


class Without:
    """A virtual environment with links to the packages of this one, PyTorch and what needs it left out."""

    def __init__(self, folder: Path) -> None:
        venv.create(folder, symlinks=True)
        self.python = folder / "bin" / "python"
        packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
        for entry in Path(sysconfig.get_path("purelib")).iterdir():
            if not entry.name.startswith(LACKS):
                (packages / entry.name).symlink_to(entry)
        (packages / "vsfdatrd.pth").write_text(str(ROOT))
        self.environment = os.environ | {
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "FDATRD_CACHE": str(folder / "cache"),
            "PYTHONWARNINGS": "error",
        }

    def run(self, *arguments: str | Path) -> tuple[int, str, str]:
        """The status, stdout and stderr of this environment's Python."""
        done = subprocess.run(
            [self.python, *arguments], env=self.environment, capture_output=True, text=True, timeout=250
        )
        assert "Traceback" not in done.stderr, done.stderr
        return done.returncode, done.stdout, done.stderr


@pytest.fixture(scope="module")
def without(tmp_path_factory: pytest.TempPathFactory) -> Without:
    made = Without(tmp_path_factory.mktemp("without"))
    assert made.run("-c", "import importlib.util as u; print(u.find_spec('torch'))") == (0, "None\n", "")
    return made


@pytest.fixture(scope="module")
def film(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four frames of 96×72."""
    from vsfdatrd.system.programs import ffmpeg

    file = tmp_path_factory.mktemp("film") / "film.mkv"
    source = ["-f", "lavfi", "-i", "testsrc2=size=96x72:rate=24:duration=0.16", "-pix_fmt", "yuv420p"]
    subprocess.run([ffmpeg(), "-v", "error", *source, "-c:v", "ffv1", str(file)], check=True)
    return file


def test_a_script_as_the_readme_has_it(without: Without, film: Path, tmp_path: Path) -> None:
    script = tmp_path / "script.vpy"
    script.write_text(
        "from vapoursynth import core\n"
        f"clip = core.bs.VideoSource({str(film)!r}, cachemode=0)\n"
        'core.fdatrd.upscale(clip, model="medium").set_output()\n'
    )
    code = (
        f"import runpy, vapoursynth as vs; runpy.run_path({str(script)!r})\n"
        "frame = vs.get_output(0).clip.get_frame(1); print(frame.width, frame.height)"
    )
    status, out, err = without.run("-c", code)
    assert (status, out) == (0, "192 144\n"), err


def test_doctor(without: Without) -> None:
    status, out, err = without.run("-m", "vsfdatrd.cli", "doctor")
    assert status == 0, out + err
    assert "torch is not installed" in out
    assert f"torch: PyTorch is not installed; {PIP}" in out


def test_encode_compare_and_preview(without: Without, film: Path, tmp_path: Path) -> None:
    output, page = tmp_path / "hd.mkv", tmp_path / "page"
    status, out, err = without.run("-m", "vsfdatrd.cli", "encode", film, output, "--model", "small", "--preset", "ffv1")
    assert status == 0, out + err
    status, out, err = without.run("-m", "vsfdatrd.cli", "compare", film, output, "--out", page)
    assert status == 0, out + err
    page = tmp_path / "preview.html"
    command: list[str | Path] = ["preview", film, "--out", page, "--model", "small", "--frames", "1"]
    status, out, err = without.run("-m", "vsfdatrd.cli", *command)
    assert status == 0, out + err
    assert "small" in page.read_text(encoding="utf-8")


def test_a_checkpoint_of_a_training_program(without: Without, tmp_path: Path, tiny_model: Path) -> None:
    import torch
    from safetensors.torch import load_file

    file = tmp_path / "tiny.pth"
    torch.save({"params_ema": load_file(tiny_model)}, file)
    code = (
        "import vapoursynth as vs; clip = vs.core.std.BlankClip(format=vs.RGBS, width=60, height=60, length=1)\n"
        f"print(vs.core.fdatrd.upscale(clip, model={str(file)!r}).get_frame(0).width)"
    )
    status, out, err = without.run("-c", code)
    assert (status, out) == (0, "120\n"), err


def test_export(without: Without, tmp_path: Path) -> None:
    def export(*arguments: str) -> tuple[int, str, str]:
        return without.run("-m", "vsfdatrd.cli", "export", "small", "-o", *arguments)

    status, out, err = export(str(tmp_path / "a.onnx"), "--size", "120x120", "--no-verify")
    assert status == 0, out + err
    status, out, err = export(str(tmp_path / "a.safetensors"))
    assert status == 0, out + err
    assert export(str(tmp_path / "a.pth")) == (
        1,
        "",
        f"vsfdatrd: writing a .pth file needs PyTorch, not installed here: {PIP}; or write a .safetensors file\n",
    )
    status, _, err = export(str(tmp_path / "b.onnx"))
    assert status == 1
    needed = "verifying an ONNX file needs ONNX Runtime and PyTorch, not installed here: pip install 'vsfdatrd[export]'"
    assert needed in err


@pytest.mark.parametrize(
    "code",
    [
        "vsfdatrd.load_model('small')",
        "core.fdatrd.upscale(core.std.BlankClip(width=64, height=64, length=1), backend='torch')",
    ],
)
def test_what_needs_pytorch_says_so(without: Without, code: str) -> None:
    imports = "import vsfdatrd, vapoursynth as vs; from vapoursynth import core"
    shown = f"{imports}\ntry: {code}\nexcept Exception as error: print(error)"
    status, out, err = without.run("-c", shown)
    assert status == 0, err
    assert PIP in out
    assert len(out.splitlines()) == 1
