"""The RGB auto-encoder of Gschoßmann 2021 (table 2): 128 x 128 x 3 images to 16 x 16 x 128 numbers and back.

    encoder   conv0 conv1 pool | conv2 conv3 pool | conv4 conv5 conv6 pool
    decoder   convtrans0 conv7 conv8 conv9 | convtrans1 conv10 conv11 | convtrans2 conv12 conv13

"Each convolutional layer is followed by a BatchNorm and a ReLU activation": every one in the table, transposed ones and
the last included, so that what comes out is not negative. The table gives the shapes of the weights of conv11 and
conv13 with the input's channels in front (128 x 64, 64 x 3); the other way round no layer would fit the next.
"""

from __future__ import annotations

from torch import Tensor, nn

from core.graph.architectures.initialisation import he


class RGBAutoEncoder(nn.Module):
    """Images whose sides are multiples of 8. The output has the input's shape."""

    ENCODER = ((64, 64), (128, 128), (128, 128, 128))
    DECODER = ((128, (128, 128, 128)), (128, (128, 64)), (64, (64, None)))
    """Per stage: the transposed convolution's width and those of the convolutions behind it; None is the image's."""

    def __init__(self, in_channels: int = 3) -> None:
        super().__init__()
        width, number = in_channels, 0
        encoder: list[tuple[str, nn.Module]] = []
        for stage, widths in enumerate(self.ENCODER):
            for channels in widths:
                encoder += _convolution(f"conv{number}", nn.Conv2d(width, channels, 3, padding=1, bias=False))
                width, number = channels, number + 1
            encoder.append((f"pool{stage}", nn.MaxPool2d(2)))
        decoder: list[tuple[str, nn.Module]] = []
        for stage, (up, behind) in enumerate(self.DECODER):
            decoder += _convolution(f"convtrans{stage}", nn.ConvTranspose2d(width, up, 2, 2, bias=False))
            width = up
            for channels in (in_channels if item is None else item for item in behind):
                decoder += _convolution(f"conv{number}", nn.Conv2d(width, channels, 3, padding=1, bias=False))
                width, number = channels, number + 1
        self.encoder, self.decoder = nn.Sequential(), nn.Sequential()
        for parent, layers in ((self.encoder, encoder), (self.decoder, decoder)):
            for name, layer in layers:
                parent.add_module(name, layer)
        he(self)

    def forward(self, x: Tensor) -> Tensor:  # N,3,H,W -> N,128,H/8,W/8 -> N,3,H,W
        out: Tensor = self.decoder(self.encoder(x))
        return out


def _convolution(name: str, layer: nn.Conv2d | nn.ConvTranspose2d) -> list[tuple[str, nn.Module]]:
    return [(name, layer), (f"{name}_bn", nn.BatchNorm2d(layer.out_channels)), (f"{name}_relu", nn.ReLU())]
