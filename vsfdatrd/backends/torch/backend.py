"""PyTorch backend: the reference on CPUs, and CUDA; `engine.py` computes.

It runs the network itself, so any architecture that can be loaded runs here, and the cache stores no more than a
marker file.
"""

import importlib.metadata
import importlib.util
import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from vsfdatrd.archs.registry.base import Checkpoint, ModelDescriptor
from vsfdatrd.backends import memory
from vsfdatrd.backends.accuracy import check_banding, check_psnr, count_levels, draw_line_art, draw_sky
from vsfdatrd.backends.base import Engine, EngineSpec, FramePlanes
from vsfdatrd.backends.gpu.devices import gpu_count
from vsfdatrd.backends.torch import engine
from vsfdatrd.errors import TORCH_INSTALL_COMMAND, EngineBuildError, EngineError, FdatrdError
from vsfdatrd.options import Precision

log = logging.getLogger(__name__)

GRAPH_VERSION = "network 2"
ANY_FRAME_SIZE = False

VERIFICATION_SIZE = (120, 180)
"""Approximate height and width of the images on which half precisions are compared with fp32."""

# Memory of one frame, in bytes for each float32 value of a kind of tensor, as measured on a CPU.
ACTIVATION_BYTES = {
    # 90 to 101 for medium from 240×240 to 480×480
    "fdat_rd.ffn": 104,
    # 3.0 to 3.4 values of 4 bytes for lda (`python -m benchmarks.tails`); no other upsampler was seen to take more
    "tail": 4 * 3.5,
    "artcnn": 4,
    # 5.0 to 12.4 values of 4 bytes for FDAT tiny to large, 2.6 to 9.0 for small networks (DAT, HAT, ESRGAN, FDAT,
    # RealCUGAN, SwinIR) at 240×240
    "fdat.largest": 4 * 13,
    "largest": 4 * 13,
}


def unavailable(device: Sequence[int] = (0,)) -> str | None:
    """Return None if PyTorch is installed; see `Backend.unavailable`."""
    if importlib.util.find_spec("torch") is None:
        return f"PyTorch is not installed; {TORCH_INSTALL_COMMAND}"
    return None


def unsupported_reason(model: ModelDescriptor) -> str | None:
    """Return a reason for files without tensors; see `Backend.unsupported_reason`."""
    return None if model.architecture.has_tensors else f"it is an {model.name} file, which has no PyTorch module"


def warm_up() -> None:
    """Do nothing: importing PyTorch would delay everything else."""


def version(device: Sequence[int] = (0,)) -> str:
    """Return PyTorch's version; see `Backend.version`."""
    return importlib.metadata.version("torch")


def _has_gpu() -> bool:
    """Return whether PyTorch can use the GPU; some builds of PyTorch are for CPUs only."""
    if not gpu_count():
        return False
    import torch

    return torch.cuda.is_available()


def precisions(checkpoint: Checkpoint, device: Sequence[int] = (0,)) -> tuple[Precision, ...]:
    """List the precisions of the device, preferred first; fp32 is always last. See `Backend.precisions`.

    GPUs: fp16, then bf16 from compute capability 8.0. CPUs: bf16 if they have instructions for it.
    """
    import torch

    if _has_gpu():
        index = device[0] if device[0] < torch.cuda.device_count() else 0
        return ("fp16", "bf16", "fp32") if torch.cuda.get_device_capability(index)[0] >= 8 else ("fp16", "fp32")
    # Builds without MKL-DNN, such as those for Macs with ARM, do not have the operator.
    has_bf16 = getattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    return ("bf16", "fp32") if has_bf16() else ("fp32",)


def device_name(spec: EngineSpec) -> str:
    """Return the GPUs' names, or ``CPU``; see `Backend.device_name`."""
    import torch

    if not _has_gpu():
        return "CPU"
    return ", ".join(torch.cuda.get_device_name(i) for i in spec.device)


def identity(spec: EngineSpec) -> str:
    """Return an empty string: nothing else changes the marker file. See `Backend.identity`."""
    return ""


def memory_estimate(spec: EngineSpec) -> tuple[int, int]:
    """Estimate activations and buffers; see `Backend.memory_estimate`."""
    network = spec.checkpoint.descriptor
    activations = memory.activation_bytes(network.config, ACTIVATION_BYTES)
    share = 1 if spec.precision == "fp32" else 0.5
    frame = spec.height * spec.width * (activations * share + memory.frame_bytes(network))
    if not _has_gpu():
        return int((spec.streams or 1) * frame), memory.free_bytes()
    import torch

    return int((spec.streams or 2) * frame), min(torch.cuda.mem_get_info(i)[0] for i in spec.device)


def build(spec: EngineSpec, directory: Path) -> None:
    """Compare a half precision with fp32 and write a marker file. The network itself is read from the weights file.

    Args:
        spec: Parameters of the engine.
        directory: The directory to write to.

    Raises:
        PrecisionUnfit: The half precision differs too much from fp32.
        EngineBuildError: PyTorch cannot compute the network.
    """
    if spec.precision != "fp32":
        log.info("%s agrees with fp32 to %.1f dB", spec.precision, _psnr_against_fp32(spec))
    (directory / "torch.json").write_text(json.dumps({"weights": spec.checkpoint.descriptor.sha256}), encoding="utf-8")


def load(spec: EngineSpec, directory: Path) -> Engine:
    """Prepare the network on its device.

    Args:
        spec: Parameters of the engine.
        directory: Not used.

    Raises:
        EngineError: PyTorch cannot prepare the network, for example for lack of memory.
    """
    on_gpu = _has_gpu()
    try:
        return engine.CudaEngine(spec) if on_gpu else engine.CpuEngine(spec)
    except RuntimeError as error:
        reason = str(error)
    # Outside the except block: the traceback keeps references to memory that the next attempt needs.
    if on_gpu:
        engine.release_cached_memory()
    raise EngineError(f"PyTorch could not prepare the network for {spec.width}×{spec.height}: {reason}")


def _psnr_against_fp32(spec: EngineSpec) -> float:
    """Return the PSNR of a half precision against fp32 on a small image, on the engine's own device; see `build`."""
    import torch

    model = spec.checkpoint.descriptor
    size = model.fixed_size or model.size.padded(*VERIFICATION_SIZE)
    device = torch.device("cuda", spec.device[0]) if _has_gpu() else torch.device("cpu")
    pictures = [picture[None, : model.frame_channels[0]] for picture in (draw_line_art(*size), draw_sky(*size))]
    outputs: list[list[FramePlanes]] = []
    for case in (replace(spec, precision="fp32"), spec):
        try:
            network = engine.load_network(case, device)
            with torch.inference_mode(), engine.without_tf32(case.precision):
                results = [network(torch.from_numpy(picture).to(device)) for picture in pictures]
        except FdatrdError:
            raise
        except Exception as error:  # networks of other architectures may raise anything
            raise EngineBuildError(f"PyTorch could not compute the network in {case.precision}: {error}") from error
        outputs.append([result[0].float().cpu().numpy() for result in results])
    psnr = check_psnr(outputs[0][0], outputs[1][0], spec.precision)
    check_banding(count_levels(outputs[0][1]), count_levels(outputs[1][1]), spec.precision)
    return psnr
