"""A network that is traced to a graph, held against PyTorch before the first engine is made of it.

FDAT-RD, FDAT and ArtCNN are written, and the tests hold what is written against PyTorch; what an exporter makes of a
network that nobody here has seen is judged by trying it on a small picture.
"""

import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np

from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.engines import openvino, verify
from vsfdatrd.errors import EngineBuildError, EngineError
from vsfdatrd.geometry import sides
from vsfdatrd.graph.of_checkpoint import graph_of, serialized

SIDES = (48, 64)
"""Height and width of the picture in pixels, before it is padded to what the network asks for."""


def check(checkpoint: Checkpoint) -> float | None:
    """How well a traced graph agrees with PyTorch on a small picture, in dB; None for networks that are not traced.

    Takes seconds, once in a process for each checkpoint. Raises EngineError if they do not agree to
    `verify.BOUND_DB`, or if the network cannot be traced.
    """
    about = checkpoint.description
    if about.written is not None or about.artcnn is not None or about.onnx is not None:
        return None
    return _agreement(checkpoint)


@lru_cache(maxsize=16)
def _agreement(checkpoint: Checkpoint) -> float:
    import torch

    from vsfdatrd.nn.other_archs import OtherNetwork

    about = checkpoint.description
    height, width = sides(*SIDES, about.multiple, about.minimum, about.square)
    with tempfile.TemporaryDirectory(prefix="vsfdatrd-") as folder:
        graph, result = Path(folder, "graph.onnx"), Path(folder, "result.npy")
        graph.write_bytes(serialized(graph_of(checkpoint, height, width)))
        openvino.reference(graph, result)
        found = np.load(result).astype(np.float32)  # (C, H·scale, W·scale)
    network = checkpoint.network()
    if not isinstance(network, OtherNetwork):
        raise TypeError(f"{type(network).__name__} is written, not traced")
    picture = verify.drawing(height, width)[None, : about.frame_channels[0]]
    with torch.inference_mode():
        expected = network.bare(torch.from_numpy(picture))[0].numpy()
    try:
        return verify.compare(expected, found, "traced")
    except EngineBuildError as error:
        raise EngineError(
            f"{checkpoint.path.name} ({about.architecture}) as a graph is not what PyTorch computes: on a small "
            f"picture {str(error).rstrip('.')}; backend='torch' runs it"
        ) from error
