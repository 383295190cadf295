"""Check that another machine has the same source, weights and programs as this one."""

from dataclasses import dataclass
from pathlib import Path

from vsfdatrd.checkpoint import open_checkpoint
from vsfdatrd.encode.source import check_plugins, file_identity
from vsfdatrd.encode.workers import ChunkInputs
from vsfdatrd.errors import FdatrdError
from vsfdatrd.system.packages import installed_versions
from vsfdatrd.system.programs import ffmpeg, ffmpeg_version
from vsfdatrd.weights.catalog import resolve_model

_PACKAGES = ("vapoursynth", "vapoursynth-bestsource", "vapoursynth-vivtc", "vapoursynth-bwdif")


@dataclass(frozen=True, slots=True)
class Environment:
    """The environment in which chunks are encoded. Its values are plain types, so that it can be sent as JSON."""

    source: str
    """Absolute path of the source."""
    content: dict[str, str | int]
    """Size and checksums of the source, without the modification time, which a copy may not preserve."""
    model: str
    """The model as in the script: a catalog name, or an absolute path."""
    weights: str
    """SHA-256 of the model's file."""
    encoder: str
    """ffmpeg's name of the video encoder."""
    ffmpeg: str
    """Version of the ffmpeg with this encoder: all chunks of a film must come from the same encoder."""
    packages: dict[str, str]
    """Versions of the VapourSynth packages."""

    @classmethod
    def of(cls, inputs: ChunkInputs) -> "Environment":
        """Return the environment of this machine, which other machines must match.

        Args:
            inputs: Inputs of the encode.
        """
        return cls(
            str(inputs.source),
            _file_identity(inputs.source),
            inputs.model,
            inputs.weights,
            inputs.encoder,
            ffmpeg_version(ffmpeg(inputs.encoder)),
            installed_versions(_PACKAGES),
        )

    def mismatch(self) -> str | None:
        """Return how the machine on which this runs differs, phrased to follow its name; None if it matches."""
        try:
            content = _file_identity(Path(self.source))
        except OSError as error:
            return (
                f"cannot read {self.source} ({error.strerror}); "
                "put the film where every machine finds it under that name, or copy it there"
            )
        if content != self.content:
            return f"has another file at {self.source}; copy the film there again"
        try:
            if open_checkpoint(resolve_model(self.model)).descriptor.sha256 != self.weights:
                return f"has other weights under the name {self.model}; copy the file there"
            version = ffmpeg_version(ffmpeg(self.encoder))
        except FdatrdError as error:
            return f"cannot do it: {error}"
        if version != self.ffmpeg:
            return (
                f"has another ffmpeg ({version}; here {self.ffmpeg}); install the same there, or put it first on PATH"
            )
        installed = installed_versions(_PACKAGES)
        for name, expected in self.packages.items():
            if installed.get(name) != expected:
                return f"has {name} {installed.get(name, 'none')}; pip install '{name}=={expected}' there"
        try:
            import vapoursynth as vs

            check_plugins(vs.core)
        except (ImportError, FdatrdError) as error:
            return f"cannot run scripts: {error}"
        return None


def _file_identity(path: Path) -> dict[str, str | int]:
    """Return `source.file_identity` without the modification time."""
    result = file_identity(path)
    del result["changed"]
    return result
