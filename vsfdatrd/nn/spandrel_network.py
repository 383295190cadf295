"""Image networks other than FDAT-RD, loaded through spandrel (the optional extra ``vsfdatrd[spandrel]``)."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

from vsfdatrd.archs.size import SizeRequirements
from vsfdatrd.errors import first_line
from vsfdatrd.weights.files import refusal
from vsfdatrd.weights.state_dicts import META_UPSAMPLE

if TYPE_CHECKING:
    from spandrel import ArchRegistry


class SpandrelNetwork(nn.Module):
    """A network of another architecture, with the interface of an FDAT-RD.

    spandrel pads to the network's minimum size and multiple, crops afterwards, and clamps to [0, 1].
    """

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.model: nn.Module = descriptor.model.requires_grad_(False)
        self._descriptor = descriptor
        self.architecture = str(descriptor.architecture.id)
        self.scale = int(descriptor.scale)
        self.channels = (int(descriptor.input_channels), int(descriptor.output_channels))
        needs = descriptor.size_requirements
        self.size = SizeRequirements(int(needs.multiple_of), int(needs.minimum), bool(needs.square))
        self.eval()

    def forward(self, x: Tensor) -> Tensor:
        """Upscale x (B, C, H, W) in [0, 1] to (B, C, H·scale, W·scale)."""
        with DeterministicOps():
            return cast(Tensor, self._descriptor(x))

    def forward_unpadded(self, x: Tensor) -> Tensor:
        """`forward` without padding, cropping and clamping, for frames of a size that the network accepts."""
        with DeterministicOps():
            return cast(Tensor, self._descriptor._call_fn(self.model, x))

    def largest(self) -> int:
        """Run a small frame and count the elements of the largest intermediate tensor, per input pixel.

        Raises:
            RuntimeError: The network does not run; it may also raise errors of any other type.
        """
        height, width = self.size.padded(64, 64)
        with torch.inference_mode(), _PeakActivation() as result:  # type: ignore[no-untyped-call]
            self.forward_unpadded(torch.zeros(1, self.channels[0], height, width))
        values: int = result.values
        return -(-values // (height * width))


def _correct_meta(state: dict[str, Tensor]) -> None:
    """Correct FDAT's ``MetaUpsample`` buffer, in place."""
    # With the pa_up tail it stores the width of the tail where spandrel 0.4 expects that of the body, which is taken
    # from the body's tensors. Some converters cast it to a floating-point type with the weights.
    note, norm = state.get(META_UPSAMPLE), state.get("groups.0.blocks.0.n1.weight")
    if note is not None and norm is not None and note.shape == (7,):
        state[META_UPSAMPLE] = note = note.long()
        note[3] = norm.numel()


class _PeakActivation(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the number of elements of the largest floating-point tensor that any operator returns."""

    values = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple | list) else (out,):
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                self.values = max(self.values, tensor.numel())
        return out


class DeterministicOps(TorchFunctionMode):
    """Context that removes nondeterminism and platform dependence from a network's operators."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        keywords = dict(kwargs or {})
        # pin_memory fails without CUDA
        if "pin_memory" in keywords and not torch.cuda.is_available():
            del keywords["pin_memory"]
        # stable: equal values keep their order
        if func in (torch.sort, torch.Tensor.sort):
            return func(
                args[0], **dict(zip(("dim", "descending"), args[1:], strict=False)), **(keywords | {"stable": True})
            )
        # view fails for memory layouts that the authors did not expect (channels last); reshape copies then
        if func is torch.Tensor.view and not isinstance(args[1] if args[1:] else keywords.get("dtype"), torch.dtype):
            return torch.Tensor.reshape(*args, **keywords)
        return func(*args, **keywords)


def is_known(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Return whether spandrel recognizes a network from tensor names and shapes.

    Args:
        path: The file, for messages.
        shapes: Tensor shapes by name.

    Raises:
        CheckpointError: spandrel is not installed.
    """
    state = {name: torch.empty(shape, device="meta") for name, shape in shapes.items()}
    for architecture in _registry(path).architectures("detection"):
        try:
            if architecture.detect(state):
                return True
        except (LookupError, AttributeError, ValueError, TypeError, RuntimeError):  # unexpected names
            continue
    return False


def _registry(path: Path) -> "ArchRegistry":
    try:
        from spandrel import MAIN_REGISTRY
    except ImportError as error:
        raise refusal(
            path, "is not an FDAT-RD; other image networks need the package spandrel: pip install 'vsfdatrd[spandrel]'"
        ) from error
    from vsfdatrd.nn.spandrel_arch import register

    register()
    return MAIN_REGISTRY


def load_network(path: Path, tensors: Mapping[str, NDArray[Any]]) -> SpandrelNetwork:
    """Build the network of a state dict through spandrel.

    Args:
        path: The file, for messages.
        tensors: Tensors by name.

    Raises:
        CheckpointError: spandrel is not installed, or these are not the tensors of an image network that it supports.
    """
    registry = _registry(path)
    from spandrel import ImageModelDescriptor

    state = {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in tensors.items()}
    _correct_meta(state)
    try:
        descriptor = registry.load(state)
    except Exception as error:  # architectures raise errors of any type for unexpected tensors
        reason = first_line(error)
        raise refusal(
            path, f"resembles a known network but does not load ({reason[:99]}); download it again"
        ) from error
    if not isinstance(descriptor, ImageModelDescriptor):
        raise refusal(path, f"is {descriptor.architecture.name}, which needs a mask as a second input; give another")
    return SpandrelNetwork(descriptor)
