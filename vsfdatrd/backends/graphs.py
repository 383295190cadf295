"""Turn any checkpoint into an ONNX graph for frames of one size, for all backends that read graphs.

Graphs of FDAT-RD, FDAT and ArtCNN are written from their weights. Any other network that is available as a PyTorch
module (from spandrel) is traced. The inputs and outputs of ONNX files are replaced with those that engines expect.
"""

from dataclasses import asdict
from typing import TYPE_CHECKING

from vsfdatrd.archs.descriptor import ModelDescriptor
from vsfdatrd.cache.manifest import digest_of
from vsfdatrd.checkpoint import Checkpoint
from vsfdatrd.errors import EngineBuildError
from vsfdatrd.graph.target import OPENVINO, GraphTarget
from vsfdatrd.weights.files import refuse

if TYPE_CHECKING:
    import onnx

FOREIGN_VERSION = 4
"""Incremented with every change to the graphs of architectures other than FDAT-RD and FDAT."""
LARGEST = 2**31 - 2**20
"""Maximum size in bytes of an ONNX file that engines read: one protobuf message."""


def graph_of(checkpoint: Checkpoint, height: int, width: int, dialect: GraphTarget = OPENVINO) -> "onnx.ModelProto":
    """Create the graph of a network for padded frames of one size.

    Args:
        checkpoint: The network.
        height: Height of the padded frame in pixels.
        width: Width of the padded frame in pixels.
        dialect: The library and precision that the graph is for.

    Returns:
        A model from ``input`` (1, C_in, H, W) to ``output`` (1, C_out, H·scale, W·scale), both float32 and nominally
        in [0, 1]; the channels are those of `ModelDescriptor.frame_channels`.

    Raises:
        EngineError: The network cannot be turned into a graph.
        OverflowError: A weight exceeds the range of the half precision.
        CheckpointError: As in `Checkpoint.tensors`.
    """
    description = checkpoint.description
    if description.written is not None:
        from vsfdatrd.graph import fdat_rd_graph

        return fdat_rd_graph(description.written, checkpoint.tensors(), height, width, dialect)
    if description.artcnn is not None:
        from vsfdatrd.graph import artcnn

        return artcnn.write(description.artcnn, checkpoint.tensors(), (height, width), dialect)
    from vsfdatrd.graph.half_precision import lowered

    if description.onnx is not None:
        return lowered(_of_file(checkpoint, height, width), dialect)
    from vsfdatrd.graph.trace import traced

    return lowered(traced(checkpoint, height, width), dialect)


def _of_file(checkpoint: Checkpoint, height: int, width: int) -> "onnx.ModelProto":
    from vsfdatrd.archs.onnx_checks import changed, read
    from vsfdatrd.graph.adapt_io import normalised

    path, ends = checkpoint.path, checkpoint.description.onnx
    if ends is None:
        raise TypeError(f"{path.name} is no ONNX file")
    checkpoint.check_unchanged()
    if changed(path, ends):
        raise refuse(path, "keeps weights beside it that were changed while in use; run the script again")
    return normalised(read(path)[0], ends, height, width)


def identity(description: ModelDescriptor) -> str:
    """Return the properties of a graph other than the weights and `graph.GRAPH_VERSION`, as text for an engine's key.

    Args:
        description: The network.
    """
    if description.written is not None:
        return ""
    text = f"foreign {FOREIGN_VERSION}"
    return text if description.onnx is None else f"{text} {digest_of(asdict(description.onnx))[:32]}"


def serialized(model: "onnx.ModelProto") -> bytes:
    """Serialize a model as the content of a file.

    Args:
        model: The graph.

    Raises:
        EngineBuildError: It is larger than `LARGEST`.
    """
    if (size := model.ByteSize()) > LARGEST:
        raise EngineBuildError(
            f"the network's graph has {size / 2**30:.1f} GiB, and 2 GiB are the most that engines read"
        )
    content: bytes = model.SerializeToString(deterministic=True)
    return content
