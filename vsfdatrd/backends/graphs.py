"""Any checkpoint -> a graph for frames of one size: the one way from a file to what every graph engine reads.

FDAT-RD, FDAT and ArtCNN are written from their weights; any other network that exists as a PyTorch module (spandrel's)
is traced; an ONNX file is given the ends that engines expect.
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
"""Raised with every change in how graphs other than FDAT-RD's and FDAT's come about."""
LARGEST = 2**31 - 2**20
"""Bytes of an ONNX file that engines read: one message of protobuf."""


def graph_of(checkpoint: Checkpoint, height: int, width: int, dialect: GraphTarget = OPENVINO) -> "onnx.ModelProto":
    """The checkpoint's network for padded frames of height × width pixels.

    -> a model from ``input`` (1, C_in, H, W) to ``output`` (1, C_out, H·scale, W·scale), both float32 and nominally in
        [0, 1]; the channels are those of `ModelDescriptor.frame_channels`.
    Raises EngineError for a network that has no graph, OverflowError if a weight is beyond the range of the dialect's
    half precision, CheckpointError as `Checkpoint.tensors` does.
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
    """What, beside the weights and `graph.GRAPH_VERSION`, a graph comes from; as text for an engine's key."""
    if description.written is not None:
        return ""
    text = f"foreign {FOREIGN_VERSION}"
    return text if description.onnx is None else f"{text} {digest_of(asdict(description.onnx))[:32]}"


def serialized(model: "onnx.ModelProto") -> bytes:
    """The model as the content of a file. Raises EngineBuildError if it is larger than such a file can be."""
    if (size := model.ByteSize()) > LARGEST:
        raise EngineBuildError(
            f"the network's graph has {size / 2**30:.1f} GiB, and 2 GiB are the most that engines read"
        )
    content: bytes = model.SerializeToString(deterministic=True)
    return content
