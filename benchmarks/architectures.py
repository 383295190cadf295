"""Test every architecture of spandrel with random weights.

    python -m benchmarks.architectures [NAME ...]

Does it load, become a graph, give the same output in OpenVINO, and build for TensorRT-RTX?

Networks are as small as their file format permits: this tests whether they run, not their speed. Each runs in its own
process with a limit of `PATIENCE` seconds. Writes results/architectures.json and the table in docs/models.md.
"""

import argparse
import importlib
import json
import logging
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.command_line import run
from benchmarks.errors import BenchmarkError
from benchmarks.report import RESULTS, save
from vsfdatrd.checkpoint import Checkpoint, open_checkpoint
from vsfdatrd.errors import FdatrdError

PATIENCE = 240
SIDES = (48, 64)
"""Height and width of the frame before it is padded to a size that the network accepts."""
TABLE = Path(__file__).resolve().parents[1] / "docs" / "models.md"
MARKS = ("<!-- table: python -m benchmarks.architectures -->", "<!-- end of table -->")

_SWIN: dict[str, Any] = {"embed_dim": 32, "depths": [2, 2], "num_heads": [2, 2], "mlp_ratio": 2, "upscale": 2}

NETWORKS: dict[str, tuple[str, dict[str, Any]]] = {
    "ATD": ("ATD.ATD", _SWIN | {"upsampler": "pixelshuffledirect", "category_size": 64, "num_tokens": 16}),
    "CRAFT": ("CRAFT.CRAFT", {"embed_dim": 48, "depths": [1, 1], "num_heads": [6, 6], "upscale": 2}),
    "Compact": ("Compact.Compact", {"num_feat": 16, "num_conv": 4, "upscale": 2}),
    "DAT": ("DAT.DAT", {"embed_dim": 32, "split_size": [8, 16], "depth": [2], "num_heads": [2], "upscale": 2}),
    "DCTLSA": ("DCTLSA.DCTLSA", {"upscale": 2}),
    "DITN": ("DITN.DITN", {"dim": 16, "ITL_blocks": 1, "SAL_blocks": 1, "upscale": 2}),
    "DRCT": ("DRCT.DRCT", _SWIN | {"depths": (6,), "num_heads": (2,), "window_size": 8, "upsampler": "pixelshuffle"}),
    "DRUNet": ("DRUNet.DRUNet", {"in_nc": 4, "out_nc": 3, "nc": [8, 16, 32, 64], "nb": 2}),
    "DnCNN": ("DnCNN.DnCNN", {"in_nc": 3, "out_nc": 3, "nb": 20, "act_mode": "R"}),
    "ESRGAN": ("ESRGAN.ESRGAN", {"num_filters": 16, "num_blocks": 2, "scale": 4}),
    "ESRGAN 2x": ("ESRGAN.ESRGAN", {"num_filters": 16, "num_blocks": 2, "scale": 2, "shuffle_factor": 2}),
    "FBCNN": ("FBCNN.FBCNN", {}),
    "FDAT": ("FDAT.FDAT", {"embed_dim": 32, "num_heads": 2, "num_groups": 1, "scale": 2}),
    "FFTformer": ("FFTformer.FFTformer", {"dim": 16, "num_blocks": [1, 1, 1], "num_refinement_blocks": 1}),
    "GRL": (
        "GRL.GRL",
        {
            "embed_dim": 32,
            "depths": [2],
            "num_heads_window": [2],
            "num_heads_stripe": [2],
            "window_size": 8,
            "stripe_size": [8, 8],
            "upscale": 2,
            "upsampler": "pixelshuffledirect",
            "mlp_ratio": 2,
        },
    ),
    "HAT": ("HAT.HAT", _SWIN | {"window_size": 8, "upsampler": "pixelshuffle", "squeeze_factor": 8}),
    "HVICIDNet": ("HVICIDNet.HVICIDNet", {"channels": [12, 12, 24, 48]}),
    "IPT": ("IPT.IPT", {"n_feats": 16, "patch_size": 24, "num_heads": 4, "num_layers": 2, "scale": [2]}),
    "KBNet_s": (
        "KBNet.KBNet_s",
        {
            "width": 16,
            "middle_blk_num": 1,
            "enc_blk_nums": [1, 1, 1, 1],
            "dec_blk_nums": [1, 1, 1, 1],
        },
    ),
    "LaMa": ("LaMa.LaMa", {}),
    "MMRealSR": (
        "MMRealSR.MMRealSR",
        {
            "num_in_ch": 3,
            "num_out_ch": 3,
            "num_feat": 16,
            "num_block": 1,
            "num_grow_ch": 8,
            "num_feats": [16, 16, 16, 16],
            "num_blocks": [1, 1, 1, 1],
        },
    ),
    "MixDehazeNet": ("MixDehazeNet.MixDehazeNet", {}),
    "MoESR": ("MoESR.MoESR", {"dim": 16, "n_blocks": 1, "n_block": 1, "scale": 2, "upsample_dim": 16}),
    "MoSR": ("MoSR.MoSR", {"n_block": 2, "dim": 16, "upscale": 2}),
    "NAFNet": ("NAFNet.NAFNet", {"width": 8, "enc_blk_nums": [1, 1], "dec_blk_nums": [1, 1]}),
    "OmniSR": ("OmniSR.OmniSR", {"num_feat": 16, "up_scale": 2}),
    "PLKSR": ("PLKSR.PLKSR", {"dim": 16, "n_blocks": 2, "upscaling_factor": 2}),
    "RealPLKSR": ("PLKSR.RealPLKSR", {"dim": 16, "n_blocks": 2, "upscaling_factor": 2}),
    "RCAN": ("RCAN.RCAN", {"scale": 2, "n_resgroups": 2, "n_resblocks": 2, "n_feats": 16, "reduction": 4}),
    "RGT": ("RGT.RGT", {"embed_dim": 32, "depth": [2], "num_heads": [2], "upscale": 2, "mlp_ratio": 2}),
    "RealCUGAN": ("RealCUGAN.UpCunet2x", {}),
    "RealCUGAN 3x": ("RealCUGAN.UpCunet3x", {}),
    "RealCUGAN 4x": ("RealCUGAN.UpCunet4x", {}),
    "RestoreFormer": ("RestoreFormer.RestoreFormer", {"n_embed": 64, "embed_dim": 32, "ch": 32, "z_channels": 32}),
    "RetinexFormer": ("RetinexFormer.RetinexFormer", {"n_feat": 16, "stage": 1}),
    "SAFMN": ("SAFMN.SAFMN", {"dim": 16, "n_blocks": 2, "upscaling_factor": 2}),
    "SAFMNBCIE": ("SAFMNBCIE.SAFMNBCIE", {"dim": 16, "n_blocks": 2, "num_layers": 2}),
    "SCUNet": ("SCUNet.SCUNet", {"config": [2] * 7}),
    "SPAN": ("SPAN.SPAN", {"num_in_ch": 3, "num_out_ch": 3, "feature_channels": 16, "upscale": 2}),
    "SeemoRe": ("SeemoRe.SeemoRe", {"scale": 2, "num_experts": 2, "num_layers": 2, "embedding_dim": 16}),
    "SwiftSRGAN": ("SwiftSRGAN.SwiftSRGAN", {"num_channels": 16, "num_blocks": 2, "upscale_factor": 2}),
    "Swin2SR": ("Swin2SR.Swin2SR", _SWIN | {"window_size": 8, "upsampler": "pixelshuffledirect"}),
    "SwinIR": ("SwinIR.SwinIR", _SWIN | {"window_size": 8, "upsampler": "pixelshuffledirect"}),
    "Uformer": ("Uformer.Uformer", {"embed_dim": 16, "depths": [1] * 9}),
}
"""Every tested network: its module in spandrel, and the arguments that make it small. AuraSR and GFPGAN are missing,
because no small configuration of them was found that loads."""


def save_network(name: str, folder: Path) -> Checkpoint:
    """Save a network with random weights and open the file.

    Args:
        name: Of the network in `NETWORKS`.
        folder: Of the file.

    Raises:
        CheckpointError: The file cannot be opened.
    """
    import torch
    from safetensors.torch import save_file

    module, _, kind = NETWORKS[name][0].partition(".")
    torch.manual_seed(0)
    network: torch.nn.Module = getattr(importlib.import_module(f"spandrel.architectures.{module}"), kind)(
        **NETWORKS[name][1]
    )
    path = folder / f"{name}.safetensors"
    save_file({key: tensor.contiguous().clone() for key, tensor in network.state_dict().items()}, path)
    return open_checkpoint(path)


def compare_with_spandrel(checkpoint: Checkpoint, folder: Path) -> tuple[float, float]:
    """Compare OpenVINO's result for a random picture with spandrel's.

    Args:
        checkpoint: The network.
        folder: Of OpenVINO's engine, empty.

    Returns:
        The largest difference, and the standard deviation of spandrel's result.
    """
    import torch

    from vsfdatrd.backends.base import EngineSpec
    from vsfdatrd.backends.openvino import backend as openvino

    about = checkpoint.descriptor
    height, width = about.size.padded(*SIDES)
    picture = np.random.default_rng(0).random((about.frame_channels[0], height, width), np.float32)
    openvino.build(EngineSpec(checkpoint, height, width, "fp32", streams=1), folder)
    engine = openvino.load(EngineSpec(checkpoint, height, width, "fp32", streams=1), folder)
    np.copyto(engine.input(0), picture)
    engine.submit(0)
    found = engine.collect(0).copy().clip(0, 1)
    engine.close()
    with torch.inference_mode():
        expected = checkpoint.network()(torch.from_numpy(picture)[None])[0].numpy()
    return float(np.abs(found - expected).max()), float(expected.std())


def build(checkpoint: Checkpoint, precision: Any, folder: Path) -> None:
    """Build an engine for a GPU.

    Args:
        checkpoint: The network.
        precision: Of the engine.
        folder: Of the engine, empty.

    Raises:
        EngineBuildError: TensorRT-RTX does not build it.
    """
    from vsfdatrd.backends.base import EngineSpec
    from vsfdatrd.backends.tensorrt import backend as tensorrt
    from vsfdatrd.backends.tensorrt.library import RTX

    about = checkpoint.descriptor
    height, width = about.size.padded(*SIDES)
    tensorrt.build_for(EngineSpec(checkpoint, height, width, precision), folder, RTX, ["sm89"])


def try_network(name: str) -> dict[str, Any]:
    """Run every test for one network."""
    found: dict[str, Any] = {"name": name}
    start = time.monotonic()

    def step(what: str, do: Callable[[], Any]) -> Any:
        try:
            result = do()
        except FdatrdError as error:
            found[what] = re.sub(r"/\S*/", "", str(error))[:300]
            return None
        except Exception as error:  # a listed network that cannot be constructed
            found[what] = f"{type(error).__name__}: {error}"[:300]
            return None
        found[what] = "yes"
        return result

    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        checkpoint = step("loads", lambda: save_network(name, folder))
        if checkpoint:
            about = checkpoint.descriptor
            found |= {
                "architecture": about.name,
                "scale": about.scale,
                "channels": about.in_channels,
                "multiple": about.size.multiple_of,
                "minimum": about.size.minimum,
                "square": about.size.square,
            }
            for what in ("openvino", "fp16", "mixed", "fp32"):
                (folder / what).mkdir()
            compared = step("openvino", lambda: compare_with_spandrel(checkpoint, folder / "openvino"))
            if compared:
                found["difference"], found["deviation"] = (float(f"{value:.3g}") for value in compared)
            for precision in ("fp16", "mixed", "fp32"):
                step(precision, partial(build, checkpoint, precision, folder / precision))
    found["seconds"] = round(time.monotonic() - start, 1)
    return found


def run_in_process(name: str) -> dict[str, Any]:
    """Run `try_network` in a separate process."""
    command = [sys.executable, "-m", "benchmarks.architectures", "--one", name]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
    except subprocess.TimeoutExpired:
        return {"name": name, "loads": f"takes over {PATIENCE} seconds"}
    if done.returncode or not done.stdout:
        return {"name": name, "loads": f"ended unexpectedly: {done.stderr[-300:]}"}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def format_table(results: Iterable[dict[str, Any]]) -> str:
    """Format the results as a Markdown table."""
    lines = [
        "| network | loads | scale | size | OpenVINO against PyTorch | TensorRT-RTX builds in |",
        "|---|---|---|---|---|---|",
    ]
    for found in results:
        if found.get("loads") != "yes":
            lines.append(f"| {found['name']} | no: {_shorten(found.get('loads', ''))} | | | | |")
            continue
        size = f"multiples of {found['multiple']}" if found["multiple"] > 1 else "any"
        size += f", {found['minimum']} at least" if found["minimum"] else ""
        size += ", square" if found["square"] else ""
        agrees = f"{found['difference']:.1g}" if "difference" in found else f"no: {_shorten(found['openvino'])}"
        builds = [name for name in ("fp16", "mixed", "fp32") if found.get(name) == "yes"]
        if not builds:
            builds = [f"no: {_shorten(found['fp16'])}"] if found.get("openvino") == "yes" else ["no"]
        lines.append(f"| {found['name']} | yes | {found['scale']}× | {size} | {agrees} | {', '.join(builds)} |")
    return "\n".join(lines)


def _shorten(reason: str) -> str:
    reason = reason.split(" cannot be written as a graph: ")[-1].replace("|", "/").replace("\n", " ")
    reason = re.sub(r"the weights file '\S+' |; its full log is \S+|; TensorRT's full log is \S+", "", reason)
    return reason if len(reason) <= 90 else reason[:87] + "..."


def main() -> int:
    """Run all tests; see the module's docstring."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.architectures", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help=", ".join(NETWORKS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        logging.disable()
        print(json.dumps(try_network(given.one)))
        return 0
    if unknown := [name for name in given.names if name not in NETWORKS]:
        parser.error(f"there is no network {', '.join(unknown)}; there are {', '.join(NETWORKS)}")
    for module, extra in (("spandrel", "spandrel"), ("tensorrt_rtx", "rtx")):
        if find_spec(module) is None:  # the table in docs/models.md would say of every network that it does not run
            raise BenchmarkError(f"{module} is not installed: pip install vsfdatrd[{extra}]")
    file = RESULTS / "architectures.json"
    before = json.loads(file.read_text(encoding="utf-8"))["result"]["networks"] if file.exists() else []
    known = {found["name"]: found for found in before}
    for name in given.names or NETWORKS:
        known[name] = run_in_process(name)
        print(json.dumps(known[name]), flush=True)
        _publish([known[name] for name in NETWORKS if name in known])
    return 0


def _publish(results: list[dict[str, Any]]) -> None:
    save("architectures", {"networks": results})
    before, _, rest = TABLE.read_text(encoding="utf-8").partition(MARKS[0])
    _, _, after = rest.partition(MARKS[1])
    TABLE.write_text(f"{before}{MARKS[0]}\n{format_table(results)}\n{MARKS[1]}{after}", encoding="utf-8")


if __name__ == "__main__":
    run(main)
