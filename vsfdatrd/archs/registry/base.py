"""Architecture: the code that differs between kinds of networks. ModelDescriptor, Checkpoint: a network in a file.

Code outside `archs` uses only these classes, and never checks which kind of network it has.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, cast

from vsfdatrd.archs.config import NetworkConfig
from vsfdatrd.archs.onnx import Range
from vsfdatrd.archs.size import SizeRequirements
from vsfdatrd.graph.target import OPENVINO, GraphTarget
from vsfdatrd.weights.files import Array, Entry, WeightsFile, refusal, require_torch, sha256
from vsfdatrd.weights.format import open_weights
from vsfdatrd.weights.state_dicts import META_UPSAMPLE, state_dicts

if TYPE_CHECKING:
    import onnx
    import torch
    from torch import nn

type Planes = Literal["rgb", "luma", "chroma"]

FOREIGN_VERSION = 4
"""Incremented with every change to the graphs of architectures other than FDAT-RD and FDAT."""
BUFFER_SUFFIXES = (META_UPSAMPLE, ".init_pos")
"""Ends of the names of buffers that networks of several architectures have."""
_CHANNEL_COUNTS: dict[Planes, tuple[int, int]] = {"rgb": (3, 3), "luma": (1, 1), "chroma": (3, 2)}


@dataclass(frozen=True)
class TensorIndex:
    """Tensors in a file that may be a network: names, types and shapes. Values are read on demand."""

    path: Path
    file: WeightsFile
    names: Mapping[str, str]
    """The network's names -> names in the file."""

    @cached_property
    def entries(self) -> Mapping[str, Entry]:
        """Types and shapes by the network's names."""
        return {name: self.file.entries[stored] for name, stored in self.names.items()}

    @property
    def trained_entries(self) -> Mapping[str, Entry]:
        """The entries without buffers, which are never trained."""
        return {name: entry for name, entry in self.entries.items() if not name.endswith(BUFFER_SUFFIXES)}

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shapes by the network's names."""
        return {name: entry.shape for name, entry in self.entries.items()}

    def read(self, *names: str) -> dict[str, Array]:
        """Read tensors: those with these names, or all."""
        return dict(self.file.read({name: self.names[name] for name in names} if names else self.names))


class Architecture[C: NetworkConfig]:
    """A kind of network. Subclasses define `name` and `config`, and override what is different for them.

    At least `detect`, `configure` and `build` are needed; ONNX graphs are then traced from the PyTorch module.
    """

    name: ClassVar[str]
    """Identifier of the architecture in cached descriptors."""
    config: type[C]
    """Class of its configurations."""
    needs_torch: ClassVar[bool] = False
    """Whether `detect` imports PyTorch; then it is asked after all others."""
    has_tensors: ClassVar[bool] = True
    """False if its files are graphs, of which there are no state dict and no PyTorch module."""
    is_traced: ClassVar[bool] = True
    """Whether its graphs are exported from the running module, and therefore compared with it before they are used."""

    # Opening a file

    def open_own_format(self, path: Path, head: bytes) -> WeightsFile | None:
        """Open a file of a format that only this architecture has, known by its first bytes; None if it has another."""
        return None

    def is_own_file(self, path: Path) -> bool:
        """Return whether a file belongs to this architecture and `describe_file` must describe it.

        Other files are described by their tensors.
        """
        return False

    def describe_file(self, path: Path, multiple: int | None, input_range: Range | None) -> tuple[C, int, str]:
        """Describe a file for which `is_own_file` is true; see `checkpoint.open_checkpoint` for the arguments.

        Returns:
            The configuration, the number of parameters and their type, as in `ModelDescriptor`.
        """
        raise NotImplementedError

    def has_changed(self, path: Path, config: C) -> bool:
        """Return whether anything but the file itself has changed since the file was described."""
        return False

    def canonical_names(self, names: Mapping[str, str]) -> Mapping[str, str]:
        """Rename tensors (network's name -> name in the file); return `names` itself if there is nothing to rename."""
        return names

    def detect(self, tensors: TensorIndex) -> bool:
        """Return whether tensors belong to a network of this architecture, complete or not."""
        return False

    def configure(self, tensors: TensorIndex) -> C:
        """Derive the configuration, and check all tensors.

        Raises:
            CheckpointError: Tensors are missing or contradict each other.
        """
        raise NotImplementedError

    def parameters(self, config: C, tensors: TensorIndex) -> int:
        """Count the trained parameters."""
        return sum(entry.count for entry in tensors.trained_entries.values())

    # The network as a PyTorch module

    def build(self, config: C) -> "nn.Module":
        """Build the module, with any weights."""
        raise NotImplementedError

    def module(self, config: C, checkpoint: "Checkpoint") -> "nn.Module":
        """Build the module with the weights of a checkpoint; see `Checkpoint.network`."""
        require_torch(checkpoint.path, "can be inspected without PyTorch, but running it as a module")
        import torch

        tensors = checkpoint.tensors()
        network = self.build(config)
        network.load_state_dict({name: torch.from_numpy(values) for name, values in tensors.items()})
        return network.eval()

    def run(self, network: "nn.Module", x: "torch.Tensor") -> "torch.Tensor":
        """Run a module on (1, C, H, W) of a size that it accepts, without padding, cropping and clamping."""
        y: torch.Tensor = network(x)
        return y

    def to_half(self, network: "nn.Module", half: "torch.dtype") -> None:
        """Convert a module to a half precision, in place. It still takes float32."""
        network.to(half).register_forward_pre_hook(lambda _, inputs: (inputs[0].to(half),))

    # The network as an ONNX graph

    def graph(
        self, config: C, checkpoint: "Checkpoint", size: tuple[int, int] | None, target: GraphTarget
    ) -> "onnx.ModelProto":
        """Create the graph of a network.

        Args:
            config: The configuration.
            checkpoint: The network.
            size: (height, width) of the frames in pixels; None for frames of any size. Unless the target pads, the
                size meets the requirements of the network. Traced graphs have one size and do not pad.
            target: The library and precision that the graph is for.

        Returns:
            A model from ``input`` (1, C_in, H, W) to ``output`` (1, C_out, H·scale, W·scale), both float32 and
            nominally in [0, 1]; the channels are those of `ModelDescriptor.frame_channels`.

        Raises:
            EngineError: The network cannot be turned into a graph.
            OverflowError: A weight exceeds the range of the half precision.
            ValueError: `size` is None, but the graph needs one; the reason follows "with model=...: ".
            CheckpointError: As in `Checkpoint.tensors`.
        """
        from vsfdatrd.graph.half_precision import convert_precision

        if size is None:
            raise ValueError(f"a graph of {config.name} is traced for one size of frame")
        return convert_precision(trace_checkpoint(checkpoint, *size), target)

    def graph_identity(self, config: C) -> str:
        """Return what determines a graph besides the weights and `graph.GRAPH_VERSION`, for the engine's cache key."""
        return f"foreign {FOREIGN_VERSION}"

    def weights_info(self, config: C, checkpoint: "Checkpoint") -> dict[str, Any]:
        """Return what ``vsfdatrd info`` prints about the weights, by label."""
        return {}


@dataclass(frozen=True, slots=True)
class ModelDescriptor:
    """Everything known about the network in a checkpoint without running it."""

    architecture: Architecture[Any]
    config: NetworkConfig
    parameters: int
    """Number of trained parameters."""
    dtype: str
    """Storage type of the parameters: ``fp16``, ``bf16``, ``fp32``, ``fp64``, or several joined by ``+``."""
    sha256: str
    """SHA-256 of the file as hexadecimal digits."""
    part: str = ""
    """Key of the state dict in the file, such as ``params_ema/``; empty for the whole file (see `state_dicts`)."""

    @property
    def name(self) -> str:
        """Name of the architecture for users: ``FDAT-RD``, ``ONNX``, ``ArtCNN C4F32``, or spandrel's name."""
        return self.config.name

    @property
    def scale(self) -> int:
        """Output pixels per input pixel, along each side."""
        return self.config.scale

    @property
    def size(self) -> SizeRequirements:
        """Size requirements of the network's input."""
        return self.config.size

    @property
    def fixed_size(self) -> tuple[int, int] | None:
        """(height, width) in pixels if the network accepts a single frame size only; None if it accepts others."""
        return self.config.fixed_size

    @property
    def planes(self) -> Planes:
        """Planes of a clip that the network processes.

        ``rgb``: R, G and B; ``luma`` (1 channel in, 1 out): Y only; ``chroma`` (2 or 3 channels in, 2 out): takes Y, U
        and V at full size and outputs U and V.
        """
        if self.config.out_channels == 2:
            return "chroma"
        return "luma" if (self.config.in_channels, self.config.out_channels) == (1, 1) else "rgb"

    @property
    def frame_channels(self) -> tuple[int, int]:
        """Number of planes that an engine for this network takes, and that it returns."""
        return _CHANNEL_COUNTS[self.planes]

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values that JSON can store; `registry.restore_descriptor` reads them."""
        return {
            "architecture": self.architecture.name,
            "config": asdict(cast(Any, self.config)),
            "parameters": self.parameters,
            "dtype": self.dtype,
            "sha256": self.sha256,
            "part": self.part,
        }


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A weights file that has been identified and validated. Holds neither an open file nor tensors."""

    path: Path
    descriptor: ModelDescriptor

    def tensors(self) -> dict[str, Array]:
        """Read every tensor from the file.

        Returns:
            Tensors by the network's own names: weights as float32, integer buffers as stored.

        Raises:
            CheckpointError: The file has changed since it was opened, or contains values that are not finite.
        """
        self.check_unchanged()
        architecture = self.descriptor.architecture
        file = open_weights(self.path, [architecture.open_own_format])
        names = next((found.names for found in state_dicts(file.entries) if found.part == self.descriptor.part), None)
        if names is None:
            raise refusal(self.path, "was changed while it was in use; run the script again")
        return dict(file.read(architecture.canonical_names(names)))

    def network(self) -> "nn.Module":
        """Build the network with its weights as a PyTorch module.

        Returns:
            A new module at every call: float32, on the CPU, in evaluation mode.
            It maps (1, in_channels, H, W) in [0, 1] to (1, out_channels, H·scale, W·scale).

        Raises:
            CheckpointError: As for `tensors`; also for an ONNX file, and if PyTorch is missing.
        """
        return self.descriptor.architecture.module(self.descriptor.config, self)

    def graph(self, height: int, width: int, target: GraphTarget = OPENVINO) -> "onnx.ModelProto":
        """Create the ONNX graph for padded frames of one size; see `Architecture.graph`."""
        return self.descriptor.architecture.graph(self.descriptor.config, self, (height, width), target)

    def check_unchanged(self) -> None:
        """Raise CheckpointError if the file has changed since it was opened."""
        if sha256(self.path) != self.descriptor.sha256:
            raise refusal(self.path, "was changed while it was in use; run the script again")


@lru_cache(maxsize=1)  # the precisions of an engine and its reference use the same graph
def trace_checkpoint(checkpoint: Checkpoint, height: int, width: int, dynamic: bool = False) -> "onnx.ModelProto":
    """Trace a checkpoint's module on a frame that needs no padding; see `graph.trace.trace_module`."""
    from vsfdatrd.graph.trace import trace_module

    about = checkpoint.descriptor
    network = checkpoint.network()
    network_name = f"{checkpoint.path.name} ({about.name})"
    size = (1, about.frame_channels[0], height, width)
    return trace_module(network, lambda x: about.architecture.run(network, x), size, network_name, dynamic)
