"""Whether another machine has what frames are made from: the same film, weights and programs."""

from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.encode import presets
from vsfdatrd.encode.source import check_plugins, identity
from vsfdatrd.encode.workers import ChunkInputs
from vsfdatrd.errors import FdatrdError
from vsfdatrd.weights.catalog import resolve

_PACKAGES = ("vapoursynth", "vapoursynth-bestsource", "vapoursynth-vivtc", "vapoursynth-bwdif")


@dataclass(frozen=True, slots=True)
class Environment:
    """What this machine has. Made of plain values, to travel as JSON."""

    source: str
    content: dict[str, str | int]
    """Of the source: size and checksums, but not when it was changed, which a copy need not keep."""
    model: str
    weights: str
    encoder: str
    """The video encoder."""
    ffmpeg: str
    """What the program with this encoder says of itself: joined parts have to be of one encoder."""
    packages: dict[str, str]

    @classmethod
    def of(cls, material: ChunkInputs) -> "Environment":
        """What is expected of others."""
        return cls(str(material.source), _content(material.source), material.model, material.weights,
                   material.encoder, presets.version(material.encoder), _packages())  # fmt: skip

    def complaint(self) -> str | None:
        """What is not so on the machine where this is asked, as a sentence without its name; None if all is well."""
        try:
            content = _content(Path(self.source))
        except OSError as error:
            return (
                f"cannot read {self.source} ({error.strerror}); "
                "put the film where every machine finds it under that name, or copy it there"
            )
        if content != self.content:
            return f"has another file at {self.source}; copy the film there once more"
        try:
            if open_checkpoint(resolve(self.model)).description.sha256 != self.weights:
                return f"has other weights as {self.model}; copy the file there"
            found = presets.version(self.encoder)
        except FdatrdError as error:
            return f"cannot do it: {error}"
        if found != self.ffmpeg:
            return f"has another ffmpeg ({found}; here {self.ffmpeg}); install the same there, or put it first on PATH"
        there = _packages()
        for name, expected in self.packages.items():
            if there[name] != expected:
                return f"has {name} {there[name]}; pip install '{name}=={expected}' there"
        try:
            import vapoursynth as vs

            check_plugins(vs.core)
        except (ImportError, FdatrdError) as error:
            return f"cannot run scripts: {error}"
        return None


def _content(path: Path) -> dict[str, str | int]:
    found = identity(path)
    del found["changed"]
    return found


def _packages() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "none"
    return found
