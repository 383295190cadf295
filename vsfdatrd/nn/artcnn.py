"""ArtCNN in PyTorch; `archs.artcnn` describes the two families.

Shapes in comments: B batch, F filters, s scale.
"""

import torch
from torch import Tensor, nn

from vsfdatrd.archs.artcnn import ArtCnnConfig, layer_names, tensor_shapes


class ArtCnn(nn.Module):
    """An ArtCNN of either family. Its tensors have the names of `archs.artcnn.layer_names`.

    Maps (B, in_channels, H, W) in [0, 1] to (B, out_channels, H·s, W·s), not clamped. Convolutions pad with zeros, as
    in training.
    """

    def __init__(self, config: ArtCnnConfig) -> None:
        super().__init__()
        self.config = config
        self.scale = config.scale
        self._order, shapes = layer_names(config), tensor_shapes(config)
        for name in self._order:
            outputs, inputs, *_ = shapes[f"{name}.weight"]
            self._place(name, nn.Conv2d(inputs, outputs, config.kernel, padding=config.kernel // 2))

    def _place(self, name: str, layer: nn.Module) -> None:
        """Add a layer under its dotted name, creating the modules in between."""
        *folders, leaf = name.split(".")
        at: nn.Module = self
        for folder in folders:
            if folder not in dict(at.named_children()):
                at.add_module(folder, nn.Module())
            at = at.get_submodule(folder)
        at.add_module(leaf, layer)

    def forward(self, x: Tensor) -> Tensor:
        """Map x (B, in_channels, H, W) to (B, out_channels, H·s, W·s)."""
        first, *body, closing, last = (self.get_submodule(name) for name in self._order)
        a = first(x)  # (B, F, H, W)
        y = a
        if self.config.residual:
            for i in range(0, len(body), 3):
                y = y + body[i + 2](torch.relu(body[i + 1](torch.relu(body[i](y)))))
        else:
            for layer in body:
                y = torch.relu(layer(y))
        features = last(a + closing(y))  # (B, out_channels·s², H, W)
        return nn.functional.pixel_shuffle(features, self.scale)
