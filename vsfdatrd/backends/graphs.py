"""The file of an ONNX graph that engines read."""

from typing import TYPE_CHECKING

from vsfdatrd.errors import EngineBuildError

if TYPE_CHECKING:
    import onnx

MAX_BYTES = 2**31 - 2**20
"""Maximum size in bytes of an ONNX file that engines read: one protobuf message."""


def serialize(model: "onnx.ModelProto") -> bytes:
    """Serialize a model as the content of a file.

    Args:
        model: The graph.

    Raises:
        EngineBuildError: It is larger than `MAX_BYTES`.
    """
    if (size := model.ByteSize()) > MAX_BYTES:
        raise EngineBuildError(f"the network's graph has {size / 2**30:.1f} GiB, and engines read at most 2 GiB")
    content: bytes = model.SerializeToString(deterministic=True)
    return content
