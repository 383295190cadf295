"""FDAT-RD for spandrel.

Importing this module registers it: ``spandrel.ModelLoader`` then loads FDAT-RD files anywhere in the process.
"""

import spandrel

from vsfdatrd.archs.fdat_rd import META_UPSAMPLE, VARIANTS, FdatRdConfig, config_from_shapes, is_fdat_rd, variant_config
from vsfdatrd.nn.fdat_rd import FdatRd

ID = spandrel.ArchId("FDATRD")


class FdatRdArch(spandrel.Architecture[FdatRd]):
    """Detects and loads FDAT-RD."""

    def __init__(self) -> None:
        super().__init__(id=ID, name="FDAT-RD", detect=is_fdat_rd)

    def load(self, state_dict: spandrel.StateDict) -> spandrel.ImageModelDescriptor[FdatRd]:
        """Build the network of a state dict.

        Args:
            state_dict: Tensors by name.

        Raises:
            CheckpointError: The configuration cannot be derived from the tensors.
            RuntimeError: Tensors are missing or have other shapes.
        """
        shapes = {name: tuple(tensor.shape) for name, tensor in state_dict.items()}
        config = config_from_shapes(shapes, [int(number) for number in state_dict[META_UPSAMPLE].tolist()])
        return spandrel.ImageModelDescriptor(
            FdatRd(config),
            state_dict,
            architecture=self,
            purpose="Restoration" if config.scale == 1 else "SR",
            tags=_network_tags(config),
            supports_half=True,  # sums over the whole frame are in float32
            supports_bfloat16=True,
            scale=config.scale,
            input_channels=config.in_channels,
            output_channels=config.out_channels,
            # The network pads and crops by itself, so there are no size requirements.
            # Three of its operations depend on the whole frame: tiling changes the result.
            tiling=spandrel.ModelTiling.DISCOURAGED,
        )


def _network_tags(config: FdatRdConfig) -> list[str]:
    body = (config.embed_dim, config.heads, len(config.groups), config.dict_tokens)
    tags = [f"{config.embed_dim}dim", config.upsampler]
    for name in VARIANTS:
        published = variant_config(name)
        if body == (published.embed_dim, published.heads, len(published.groups), published.dict_tokens):
            tags.insert(0, name)
            break
    return [*tags, "unshuffle"] if config.unshuffle > 1 else tags


def register(registry: spandrel.ArchRegistry = spandrel.MAIN_REGISTRY) -> None:
    """Add FDAT-RD to a registry, to be tried before FDAT, its predecessor. Repeated calls have no effect."""
    support = spandrel.ArchSupport.from_architecture(FdatRdArch(), before=(spandrel.ArchId("FDAT"),))
    registry.add(support, ignore_duplicates=True)


register()
