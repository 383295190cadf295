"""How a graph is written for the engine that will read it. What it computes is the same in every dialect."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from vsfdatrd.options import Precision


@dataclass(frozen=True, slots=True)
class GraphTarget:
    """Arithmetic, and the operators an engine has its best kernels for."""

    precision: Precision = "fp32"
    """Arithmetic of products, convolutions and attention. With ``mixed`` they are fp16, and the stream of tokens that
    blocks add to is fp32; sums over a whole frame, norms and the small matrices are fp32 in any case."""
    attention: bool = False
    """Attention as ONNX's own operator (since operator set 23) instead of products and a softmax."""
    parts: bool = False
    """Reductions over the whole frame in parts that run side by side and whose sums cannot overflow half precision."""
    turing: bool = False
    """For GPUs of compute capability 7.5, where TensorRT-RTX has no fp32 products (convolutions do the small ones) and
    makes tables of hundreds of megabytes for convolutions by channel (sums of shifted maps do those)."""
    lanes: int = 1
    """What the channels of a head are a multiple of in attention over places, filled up with zeros if they are not."""
    padding: bool = False
    """Any frame size: the graph pads to the network's multiple and crops, as the filter does around an engine."""

    @property
    def compute(self) -> np.dtype[Any]:
        """Type of what is multiplied."""
        if self.precision == "bf16":
            import ml_dtypes

            bf16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
            return bf16
        return np.dtype(np.float32 if self.precision == "fp32" else np.float16)

    @property
    def stream(self) -> np.dtype[Any]:
        """Type of the tokens and maps that blocks and groups add to."""
        return np.dtype(np.float32) if self.precision == "mixed" else self.compute

    @property
    def opset(self) -> int:
        """ONNX operator set: 20 is the first with Gelu, 23 the first with Attention and with bf16 everywhere."""
        return 23 if self.attention or self.precision == "bf16" else 20


OPENVINO = GraphTarget()
"""For OpenVINO, which lowers the precision itself."""


def tensorrt(precision: Precision, turing: bool = False) -> GraphTarget:
    """For TensorRT, which computes in just the types the graph has. Its fused attention has no fp32 kernels, and wants
    heads of eights."""
    fused = precision != "fp32"
    return GraphTarget(precision, attention=fused, parts=True, turing=turing, lanes=8 if fused else 1)
