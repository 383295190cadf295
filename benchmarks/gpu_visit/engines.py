"""Measure PyTorch in fp16 and bf16 on the GPU: accuracy against fp32, and frames per second of the engine alone."""

import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import save_file

from benchmarks.gpu_visit.sizes import Sizes
from benchmarks.gpu_visit.timing import device, median_and_range, seconds, synchronize
from benchmarks.weights import random_tensors, weights_file
from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.archs.size import round_up
from vsfdatrd.backends.accuracy import draw_line_art
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.errors import first_line
from vsfdatrd.options import Precision
from vsfdatrd.weights.catalog import resolve_model

SMALL = FdatRdConfig(
    embed_dim=32,
    heads=1,
    groups=(("spatial", "channel", "dictionary"),),
    dict_tokens=32,
    ffn_dim=64,
    gate_dim=4,
    upsampler="transpose+conv",
    tail_scale=2,
    unshuffle=1,
    mid_dim=32,
)
DTYPES: dict[Precision, torch.dtype] = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def checkpoints(folder: Path, sizes: Sizes) -> dict[str, Checkpoint]:
    """The shipped medium, whose zero branches are left out, and medium without zero branches.

    A rehearsal uses a network with one block of each kind instead of both.

    Args:
        folder: Of the files that are written.
        sizes: Of the visit.
    """
    if sizes.small:
        file = folder / "small.safetensors"
        save_file(random_tensors(SMALL), file)
        return {"whole": open_checkpoint(file)}
    shipped = resolve_model("medium")
    return {"shipped": open_checkpoint(shipped), "whole": open_checkpoint(weights_file("medium", folder)[0])}


def padded_drawing(checkpoint: Checkpoint, height: int, width: int) -> torch.Tensor:
    """The drawing as the network takes it, (1, 3, H, W) float32 on the device; sides are padded to its multiple."""
    multiple = checkpoint.descriptor.size.multiple_of
    return torch.from_numpy(draw_line_art(round_up(height, multiple), round_up(width, multiple)))[None].to(device())


def without_tf32() -> AbstractContextManager[None]:
    """Compute fp32 in full precision: neither products nor convolutions in TF32 (10 bits)."""
    torch.set_float32_matmul_precision("highest")
    flags: AbstractContextManager[None] = torch.backends.cudnn.flags(enabled=True, allow_tf32=False)
    return flags


def compute_psnr(result: torch.Tensor, reference: torch.Tensor) -> tuple[float, bool]:
    """Compare a result with another.

    Args:
        result: A picture of 0 to 1.
        reference: Likewise, of the same size.

    Returns:
        PSNR in dB for a peak of 1, and whether a value of the result is not finite.
    """
    wrong = not bool(result.isfinite().all())
    difference = (result.float().clamp(0, 1) - reference.float().clamp(0, 1)).double()
    error = float((difference**2).mean())
    return (float("nan") if wrong else round(10 * float(np.log10(1 / max(error, 1e-20))), 2)), wrong


@torch.inference_mode()
def load_network(checkpoint: Checkpoint, precision: Precision) -> torch.nn.Module:
    """The network on the device in channels-last format, as in the torch backend."""
    found = checkpoint.network().to(device(), DTYPES[precision])
    for tensor in (*found.parameters(), *found.buffers()):
        if tensor.dim() == 4:
            tensor.data = tensor.data.contiguous(memory_format=torch.channels_last)
    return found


@torch.inference_mode()
def start_network(
    module: torch.nn.Module, frame: torch.Tensor, precision: Precision
) -> tuple[Callable[[], Any], torch.Tensor]:
    """Prepare a network for a frame; on a GPU as one CUDA graph, as in the product's engine.

    Args:
        module: The network.
        frame: The frame, float32.
        precision: In which the network computes.

    Returns:
        What computes the frame again, and the tensor that it computes.
    """
    source = frame.clone()
    if device().type == "cpu":
        result = module(source.to(DTYPES[precision])).float()
        return (lambda: result.copy_(module(source.to(DTYPES[precision])))), result
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            module(source.to(DTYPES[precision]))
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = module(source.to(DTYPES[precision])).float()
    return graph.replay, result


@torch.inference_mode()
def measure_row(checkpoint: Checkpoint, precision: Precision, sizes: Sizes, reference: torch.Tensor) -> dict[str, Any]:
    """Measure one PyTorch engine.

    Args:
        checkpoint: The network.
        precision: Of the engine.
        sizes: Of the frame and the turns.
        reference: The result in fp32.

    Returns:
        The fields of a result row.
    """
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    frame = padded_drawing(checkpoint, sizes.height, sizes.width)
    run, result = start_network(load_network(checkpoint, precision), frame, precision)
    run()
    synchronize()
    loaded = time.perf_counter() - start
    decibels, wrong = compute_psnr(result, reference)
    rates = [1 / each for each in seconds(run, sizes.frames, sizes.turns, warm=1)]
    peak = torch.cuda.max_memory_reserved() >> 20 if torch.cuda.is_available() else None
    return {
        "psnr_db": decibels,
        "nan": wrong,
        "fps_alone": median_and_range(rates),
        "memory_mib": peak,
        "load_s": round(loaded, 2),
    }


@torch.inference_mode()
def compute_in_fp32(checkpoint: Checkpoint, sizes: Sizes) -> torch.Tensor:
    """The result of the network in fp32, with TF32 off."""
    with without_tf32():
        result: torch.Tensor = load_network(checkpoint, "fp32")(padded_drawing(checkpoint, sizes.height, sizes.width))
        return result


def run(sizes: Sizes, record: Callable[[dict[str, Any]], None]) -> None:
    """Measure every precision with the shipped weights and with those without zero branches."""
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        for weights, checkpoint in checkpoints(Path(folder), sizes).items():
            reference = compute_in_fp32(checkpoint, sizes)
            for precision in (*sizes.precisions, "fp32"):
                about = {"backend": "torch", "graph": "network", "precision": precision, "weights": weights}
                try:
                    if precision == "fp32":
                        with without_tf32():
                            found = measure_row(checkpoint, precision, sizes, reference)
                    else:
                        found = measure_row(checkpoint, precision, sizes, reference)
                except RuntimeError as error:  # recorded as a row with the reason; the others continue
                    found = {"error": first_line(error)}
                rows.append(about | {"size": [sizes.width, sizes.height]} | found)
                record({"engines": rows})
