"""The plugins of vs-mlrt run exported files and return the same frames as the filter."""

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from tests.apart import start_process
from tests.commands.export.conftest import Array, relative_error, run_torch
from vsfdatrd import __version__
from vsfdatrd.backends import accuracy
from vsfdatrd.commands.export import export
from vsfdatrd.options import Precision
from vsfdatrd.weights.catalog import CATALOG

type Plugin = Callable[[str, Path, Array], Array]

pytestmark = [pytest.mark.usefixtures("one_thread"), pytest.mark.filterwarnings("ignore:torch.meshgrid")]

# vs-mlrt's plugins bring ONNX Runtime and OpenVINO of their own, so they run in a process without Python's.
RUNNER = """
import numpy as np
import vapoursynth as vs

def filled(picture, n, f):
    out = f.copy()
    for i, plane in enumerate(picture):
        np.asarray(out[i])[:] = plane
    return out

def compute(namespace, graph, picture):
    clip = vs.core.std.BlankClip(width=picture.shape[2], height=picture.shape[1], format=vs.RGBS, length=1)
    clip = clip.std.ModifyFrame(clip, lambda n, f: filled(picture, n, f))
    # OpenVINO computes in bf16 where the processor can, unless it is told not to.
    how = {"config": lambda: {"INFERENCE_PRECISION_HINT": "f32"}} if namespace == "ov" else {}
    frame = getattr(vs.core, namespace).Model(clip, network_path=graph, **how).get_frame(0)
    return np.stack([np.asarray(frame[i]) for i in range(3)])
"""


@pytest.fixture(scope="module")
def plugin(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plugin]:
    """Function that runs a plugin of vs-mlrt (``ort`` or ``ov``) with a file on a picture (3, H, W)."""
    with start_process(RUNNER, tmp_path_factory.mktemp("plugin")) as compute:
        yield compute


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_medium(plugin: Plugin, target: Path, precision: Precision) -> None:
    done = export("medium", target, size=(120, 120), precision=precision)
    assert done.psnr is not None
    assert done.psnr > (110 if precision == "fp32" else 70)
    about = {entry.key: entry.value for entry in onnx.load(target).metadata_props}
    assert about == {
        "model": "medium",
        "weights_sha256": CATALOG["medium"].sha256,
        "scale": "2",
        "precision": precision,
        "vsfdatrd": __version__,
    }
    picture = accuracy.draw_line_art(120, 120)
    expected = run_torch(Path(__file__).parents[3] / "models/fdat_rd_medium_2x.safetensors", picture)
    assert relative_error(plugin("ort", target, picture), expected) < (1e-4 if precision == "fp32" else 1e-2)


@pytest.mark.parametrize("namespace", ["ort", "ov"])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_plugins_of_vs_mlrt_run_it(
    plugin: Plugin, tiny_model: Path, target: Path, namespace: str, precision: Precision
) -> None:
    bound = 1e-4 if precision == "fp32" else 2e-2
    for width, height in ((60, 90), (97, 61)):
        picture = accuracy.draw_line_art(height, width)
        expected = run_torch(tiny_model, picture)
        export(tiny_model, target, size=(width, height), precision=precision, verify=False)
        assert relative_error(plugin(namespace, target, picture), expected) < bound
        export(tiny_model, target, dynamic=True, precision=precision, verify=False)
        assert relative_error(plugin(namespace, target, picture), expected) < bound


def test_openvino_in_vapoursynth_runs_bf16(plugin: Plugin, tiny_model: Path, target: Path) -> None:
    picture = accuracy.draw_line_art(61, 47)
    export(tiny_model, target, dynamic=True, precision="bf16", verify=False)
    assert 1e-4 < relative_error(plugin("ov", target, picture), run_torch(tiny_model, picture)) < 0.1


def test_medium_in_vapoursynth_is_what_the_filter_gives(plugin: Plugin, target: Path) -> None:
    """As in a script: the same picture through core.ov.Model and core.fdatrd.upscale."""
    import vapoursynth as vs

    picture = accuracy.draw_line_art(75, 122)
    export("medium", target, dynamic=True, verify=False)

    def filled(n: int, f: vs.VideoFrame) -> vs.VideoFrame:
        out = f.copy()
        for i, plane in enumerate(picture):
            np.asarray(out[i])[:] = plane
        return out

    clip = vs.core.std.BlankClip(width=122, height=75, format=vs.RGBS, length=1)
    clip = clip.std.ModifyFrame(clip, filled)
    with clip.fdatrd.upscale(backend="torch", precision="fp32").get_frame(0) as frame:
        expected = np.stack([np.asarray(frame[i]) for i in range(3)])
    out = plugin("ov", target, picture)
    assert np.abs(np.clip(out, 0, 1) - np.clip(expected, 0, 1)).max() < 1e-4
