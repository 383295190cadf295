"""Target engine of a graph: precision and preferred operators. All targets compute the same function."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vsfdatrd.options import Precision


@dataclass(frozen=True, slots=True)
class GraphTarget:
    """Precision of a graph, and the operators for which an engine has fast kernels."""

    precision: Precision = "fp32"
    """Type of products, convolutions and attention. With ``mixed`` they are fp16, and the residual stream of tokens is
    fp32. Sums over a whole frame, norms and small matrices are fp32 in every precision.
    """
    attention: bool = False
    """Use the ONNX operator Attention (since operator set 23) instead of products and a softmax."""
    split_reductions: bool = False
    """Split reductions over the whole frame into parallel chunks whose sums cannot overflow half precision."""
    sm75: bool = False
    """Write for GPUs of compute capability 7.5, for which TensorRT-RTX has no fp32 matrix products and builds tables of
    hundreds of megabytes for depthwise convolutions. Small products become 1×1 convolutions, and depthwise convolutions
    become sums of shifted maps.
    """
    maps: bool = False
    """Write FDAT-RD and FDAT for frames of known size in the form of `fdat_rd_maps`. Needs `attention` and
    `split_reductions`.
    """
    joined_layers: bool = False
    """Merge consecutive linear layers where that moves less memory (first and last layers of ArtCNN, known sizes)."""
    head_multiple: int = 1
    """In attention over tokens, the channels of a head are padded with zeros to a multiple of this number."""
    padding: bool = False
    """Accept any frame size: the graph itself pads to the network's multiple and crops. Otherwise the filter does."""

    @property
    def compute_dtype(self) -> np.dtype[Any]:
        """Type of products and convolutions."""
        if self.precision == "bf16":
            import ml_dtypes

            bf16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
            return bf16
        return np.dtype(np.float32 if self.precision == "fp32" else np.float16)

    @property
    def stream_dtype(self) -> np.dtype[Any]:
        """Type of the tokens and maps that blocks and groups are added to (residual stream)."""
        return np.dtype(np.float32) if self.precision == "mixed" else self.compute_dtype

    @property
    def opset(self) -> int:
        """ONNX operator set: 20 is the first with Gelu, 23 the first with Attention and with bf16 in all operators."""
        return 23 if self.attention or self.precision == "bf16" else 20


OPENVINO = GraphTarget()
"""For OpenVINO, which converts to lower precision itself."""


def tensorrt_target(precision: Precision, sm75: bool = False, portable: bool = True) -> GraphTarget:
    """Build the target for TensorRT, which computes in exactly the types of the graph.

    TensorRT's fused attention has no fp32 kernels and needs head sizes that are a multiple of 8. In fp32, only the form
    of `fdat_rd_maps` contains `Attention`, which the library decomposes into products.

    Args:
        precision: Precision of the graph.
        sm75: Write for compute capability 7.5.
        portable: Write for TensorRT-RTX, otherwise for TensorRT. Only the builder of TensorRT-RTX shows the cost of a
            graph.
    """
    fused = precision != "fp32"
    maps = portable and not sm75
    return GraphTarget(
        precision,
        attention=fused or maps,
        split_reductions=True,
        sm75=sm75,
        maps=maps,
        joined_layers=portable,
        head_multiple=8 if fused else 1,
    )
