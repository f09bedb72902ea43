"""What networks that were first trained in Caffe have in common: pixels as it fed them, and initial weights."""

from torch import Tensor, nn

from heads.systems.pixels import Photos
from heads.systems.system import Option, Options, Shape

MEAN = (123 / 255, 117 / 255, 104 / 255)
"""Of red, green and blue in ImageNet, as Caffe's networks take it off."""
SPREAD = (1 / 255,) * 3
UNDECAYED = ("*bias",)
"""Caffe's networks have no weight decay on biases."""
PIXELS = Option(
    "imagenet",
    "ours, as all networks here; of weights converted from Caffe say caffe: blue, green, red, of 255, less the mean",
    choices=("imagenet", "caffe"),
)


class CaffePhotos(Photos):
    """Crops as Caffe's networks see them: blue, green and red in 0 .. 255, with ImageNet's mean taken off."""

    def __init__(self, shape: Shape, size: int, *, flip: bool = True) -> None:
        super().__init__(shape, size, flip=flip, mean=MEAN, std=SPREAD)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, size, size) float32."""
        return super().forward(pixels).flip(1)

    def ten(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 10, 3, size, size) float32, as of `Photos`."""
        return super().ten(pixels).flip(2)


def photos_of(shape: Shape, options: Options) -> Photos:
    """The crops that options `crop`, `flip` and `pixels` ask for."""
    kind = CaffePhotos if options["pixels"] == "caffe" else Photos
    return kind(shape, options["crop"], flip=options["flip"])


def he(module: nn.Module) -> None:
    """Initial weights of a network with ReLU: those of He et al. (2015), of fully connected layers a third of them.

    The third is ours. Caffe's networks begin with about as much; with more, one of full size explodes at its rates.
    Biases begin at 0.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if isinstance(layer, nn.Linear):
                layer.weight.data /= 3
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


def xavier(module: nn.Module, *, bias: float) -> None:
    """Initial weights after Glorot and Bengio (2010); every bias the same."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.xavier_uniform_(layer.weight)
            if layer.bias is not None:
                nn.init.constant_(layer.bias, bias)


def scaled(width: float, channels: int, *, even: bool = False) -> int:
    """Channels of a network `width` times as wide, at least 1; 2 or more of a layer in two groups."""
    return 2 * max(1, round(width * channels / 2)) if even else max(1, round(width * channels))


def convolved(side: int, kernel: int, stride: int = 1, *, padding: int = 0) -> int:
    """The side of the map that a convolution makes of one."""
    return (side + 2 * padding - kernel) // stride + 1


def pooled(side: int, kernel: int = 3, stride: int = 2) -> int:
    """The side of the map that one of Caffe's pools makes of one: it rounds up."""
    return -((kernel - side) // stride) + 1
