"""ModelDescriptor: everything known about the network in a checkpoint without running it."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from vsfdatrd.archs.artcnn import ArtCnnConfig
from vsfdatrd.archs.fdat import Config, FdatConfig
from vsfdatrd.archs.fdat_rd import FdatRdConfig
from vsfdatrd.archs.onnx import OnnxConfig
from vsfdatrd.archs.size import SizeRequirements

FDAT_RD = "FDAT-RD"
FDAT = "FDAT"

type Planes = Literal["rgb", "luma", "chroma"]

_CHANNELS: dict[Planes, tuple[int, int]] = {"rgb": (3, 3), "luma": (1, 1), "chroma": (3, 2)}


@dataclass(frozen=True, slots=True)
class ModelDescriptor:
    """Everything known about the network in a checkpoint without running it."""

    architecture: str
    """``FDAT-RD``, ``FDAT``, ``ONNX``, the name of an ArtCNN, or spandrel's name of the architecture."""
    scale: int
    """Output pixels per input pixel, along each side."""
    in_channels: int
    """Channels of the network's input; `planes` says which planes of a clip they are."""
    out_channels: int
    """Channels of the network's output."""
    multiple: int
    """Height and width of the input are padded to a multiple of this, in pixels."""
    minimum: int
    """Smallest height and width of the padded input in pixels; 0 is no limit."""
    parameters: int
    """Number of trained parameters."""
    dtype: str
    """Storage type of the parameters: ``fp16``, ``bf16``, ``fp32``, ``fp64``, or several joined by ``+``."""
    sha256: str
    """SHA-256 of the file as hexadecimal digits."""
    part: str = ""
    """Key of the state dict in the file, such as ``params_ema/``; empty for the whole file (see `state_dicts`)."""
    largest: int = 0
    """Peak activation: elements of the largest intermediate tensor per input pixel. 0 if the config computes it."""
    square: bool = False
    """Whether height and width of the padded input must be equal."""
    config: FdatRdConfig | None = None
    """Hyper-parameters of an FDAT-RD; None for other architectures."""
    fdat: FdatConfig | None = None
    """Hyper-parameters of an FDAT; None for other architectures."""
    artcnn: ArtCnnConfig | None = None
    """Hyper-parameters of an ArtCNN; None for other architectures."""
    onnx: OnnxConfig | None = None
    """Inputs and outputs of a network that is stored as an ONNX file; None for a file of weights."""

    @property
    def written(self) -> Config | None:
        """Hyper-parameters of an FDAT-RD or FDAT, whose ONNX graph is written from the weights; None for others."""
        return self.config or self.fdat

    @property
    def size(self) -> SizeRequirements:
        """Size requirements of the network's input."""
        return SizeRequirements(self.multiple, self.minimum, self.square)

    @property
    def planes(self) -> Planes:
        """Planes of a clip that the network processes.

        ``rgb``: R, G and B; ``luma`` (1 channel in, 1 out): Y only; ``chroma`` (2 or 3 channels in, 2 out): takes Y, U
        and V at full size and outputs U and V.
        """
        if self.out_channels == 2:
            return "chroma"
        return "luma" if (self.in_channels, self.out_channels) == (1, 1) else "rgb"

    @property
    def frame_channels(self) -> tuple[int, int]:
        """Number of planes that an engine for this network takes, and that it returns."""
        return _CHANNELS[self.planes]

    @property
    def fixed(self) -> tuple[int, int] | None:
        """(height, width) in pixels if the network accepts a single frame size only; None if it accepts others."""
        return self.onnx.size if self.onnx else None

    def to_dict(self) -> dict[str, Any]:
        """Convert to plain values that JSON can store."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "ModelDescriptor":
        """Restore a descriptor from the result of `to_dict`.

        Args:
            plain: Result of `to_dict`, possibly after a round trip through JSON.

        Returns:
            An equal descriptor.

        Raises:
            ValueError: A field is missing or has the wrong type.
        """
        try:
            values = {field.name: plain[field.name] for field in fields(cls)}
            kinds: dict[str, type[FdatRdConfig] | type[FdatConfig]] = {"config": FdatRdConfig, "fdat": FdatConfig}
            for name, kind in kinds.items():
                if (config := values[name]) is not None:
                    config = {field.name: config[field.name] for field in fields(kind)}
                    config["groups"] = tuple(tuple(group) for group in config["groups"])
                    values[name] = kind(**config)
            if (artcnn := values["artcnn"]) is not None:
                values["artcnn"] = ArtCnnConfig(**{field.name: artcnn[field.name] for field in fields(ArtCnnConfig)})
            if (ends := values["onnx"]) is not None:
                values["onnx"] = OnnxConfig(**{field.name: ends[field.name] for field in fields(OnnxConfig)})
        except (KeyError, TypeError) as error:
            raise ValueError(f"this is no checkpoint's description: {error!r}") from error
        for name in ("scale", "in_channels", "out_channels", "multiple", "minimum", "parameters", "largest"):
            if type(values[name]) is not int:
                raise ValueError(f"this is no checkpoint's description: {name} is {values[name]!r}")
        if type(values["square"]) is not bool:
            raise ValueError(f"this is no checkpoint's description: square is {values['square']!r}")
        return cls(**values)
