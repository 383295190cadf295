"""What is known of a checkpoint's network without running it: the record that everything else goes by."""

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
    """What is known of a checkpoint's network without running it."""

    architecture: str
    """``FDAT-RD``, or the name spandrel has for it."""
    scale: int
    """Output pixels per input pixel, along each side."""
    in_channels: int
    """Channels of the network's input; see `planes` for what goes there."""
    out_channels: int
    """Channels of its output."""
    multiple: int
    """Both sides of the input are padded to a multiple of this many pixels."""
    minimum: int
    """Smallest side of the padded input in pixels; 0 is none."""
    parameters: int
    """Number of trained values."""
    dtype: str
    """How the file stores them: ``fp16``, ``bf16``, ``fp32``, ``fp64``, or several joined by ``+``."""
    sha256: str
    """SHA-256 of the file, as hexadecimal digits."""
    part: str = ""
    """Which part of the file is the network, such as ``params_ema/``; empty for all of it (`state_dicts`)."""
    largest: int = 0
    """Values in the largest tensor on the way, per pixel of the padded frame; 0 where a configuration tells more."""
    square: bool = False
    """Whether the padded input must be as high as it is wide."""
    config: FdatRdConfig | None = None
    """Hyper-parameters of an FDAT-RD; None for other architectures."""
    fdat: FdatConfig | None = None
    """Hyper-parameters of an FDAT; None for other architectures."""
    artcnn: ArtCnnConfig | None = None
    """Hyper-parameters of an ArtCNN; None for other architectures."""
    onnx: OnnxConfig | None = None
    """Ends of a network that comes as an ONNX file; None for weights."""

    @property
    def written(self) -> Config | None:
        """Hyper-parameters of a network of FDAT's kind, whose graph is written from its weights."""
        return self.config or self.fdat

    @property
    def size(self) -> SizeRequirements:
        """What both sides of the network's input must be."""
        return SizeRequirements(self.multiple, self.minimum, self.square)

    @property
    def planes(self) -> Planes:
        """What of a clip the network takes. ``rgb``: R, G and B; ``luma`` (1 channel to 1): Y alone; ``chroma`` (2 or 3
        to 2): Y, U and V at full size, and U and V come out."""
        if self.out_channels == 2:
            return "chroma"
        return "luma" if (self.in_channels, self.out_channels) == (1, 1) else "rgb"

    @property
    def frame_channels(self) -> tuple[int, int]:
        """Planes that go into an engine for this network, and planes that come out."""
        return _CHANNELS[self.planes]

    @property
    def fixed(self) -> tuple[int, int] | None:
        """(height, width) of the only frames the network takes; None if it takes others, too."""
        return self.onnx.size if self.onnx else None

    def to_dict(self) -> dict[str, Any]:
        """As plain values that JSON can hold."""
        return asdict(self)

    @classmethod
    def from_dict(cls, plain: Mapping[str, Any]) -> "ModelDescriptor":
        """The description `to_dict` made, possibly by way of JSON. Raises ValueError if it is something else."""
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
