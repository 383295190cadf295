"""FDAT, the predecessor of FDAT-RD. Its PyTorch module is spandrel's."""

from typing import cast, override

from vsfdatrd.archs.fdat import FdatConfig, is_fdat
from vsfdatrd.archs.fdat_rd import META_UPSAMPLE
from vsfdatrd.archs.fdat_shapes import fdat_config_from_shapes
from vsfdatrd.archs.registry.base import TensorIndex
from vsfdatrd.archs.registry.fdat_rd import FdatFamily, read_meta_upsample
from vsfdatrd.archs.registry.spandrel import SpandrelModule


class Fdat(FdatFamily[FdatConfig], SpandrelModule[FdatConfig]):
    """FDAT exactly as spandrel builds it; `Spandrel` handles variants of it."""

    name = "FDAT"
    config = FdatConfig

    @override
    def detect(self, tensors: TensorIndex) -> bool:
        return is_fdat(tensors.entries) and self._config(tensors) is not None

    @override
    def configure(self, tensors: TensorIndex) -> FdatConfig:
        return cast(FdatConfig, self._config(tensors))  # never None for what `detect` has found

    def _config(self, tensors: TensorIndex) -> FdatConfig | None:
        if not all(entry.is_float for name, entry in tensors.entries.items() if name != META_UPSAMPLE):
            return None
        try:
            return fdat_config_from_shapes(tensors.shapes, read_meta_upsample(tensors))
        except ValueError:
            return None
