"""What networks that are trained from pixels have in common: the crops that they see of stored photos."""

import torch
from torch import Tensor, nn

from heads.errors import FeaturesError
from heads.labels.target import JointTarget, Target
from heads.systems.system import Shape, from_pixels
from heads.training.losses import predictions

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
TEN = 10
"""Corners and centre, each mirrored too."""


class Photos(nn.Module):
    """What a network sees of stored photos: crops of them, as floats of zero mean and equal spread.

    Training sees another crop, or its mirror image, of each photo in every epoch; otherwise the centre is seen. Pixels
    are bytes until the crop is cut.

    Args:
        shape: of a stored photo, (H, W, 3).
        size: side of the crop; None for the whole photo.
        random: whether training draws where the crop is; the centre otherwise.
        flip: whether training draws if it is mirrored.
        mean, std: of red, green and blue, in 0 .. 1.

    Raises:
        FeaturesError: a stored photo is smaller than the crop.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        shape: Shape,
        size: int | None,
        *,
        random: bool = True,
        flip: bool = True,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
    ) -> None:
        super().__init__()
        self.height, self.width = shape[-3], shape[-2]
        self.tall, self.wide = (self.height, self.width) if size is None else (size, size)
        if size is not None and min(self.height, self.width) < size:
            raise FeaturesError(
                f"the stored photos have {self.width} x {self.height} pixels, the head sees crops of {size} x {size}; "
                f"store larger ones, or say --set crop={min(self.height, self.width)}"
            )
        self.random, self.flip = random, flip
        self.generator: torch.Generator | None = None
        """The model's own, as training gives it; torch's if None."""
        self.register_buffer("mean", 255 * torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(std).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, size, size) float32."""
        down, right = self.height - self.tall, self.width - self.wide
        if not self.training or not (self.random or self.flip):
            return self._normal(self._cut(pixels, down // 2, right // 2))
        tops = self._draw(len(pixels), down + 1) if self.random else [down // 2] * len(pixels)
        lefts = self._draw(len(pixels), right + 1) if self.random else [right // 2] * len(pixels)
        mirrored = self._draw(len(pixels), 2) if self.flip else [0] * len(pixels)
        crops = torch.empty(len(pixels), self.tall, self.wide, 3, dtype=pixels.dtype, device=pixels.device)
        for number, (top, left, mirror) in enumerate(zip(tops, lefts, mirrored, strict=True)):
            crop = pixels[number, top : top + self.tall, left : left + self.wide]
            crops[number] = crop.flip(1) if mirror else crop
        return self._normal(crops)

    def ten(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 10, 3, size, size) float32: corners and centre, then the same mirrored."""
        down, right = self.height - self.tall, self.width - self.wide
        places = [(0, 0), (0, right), (down, 0), (down, right), (down // 2, right // 2)]
        five = torch.stack([self._normal(self._cut(pixels, *place)) for place in places], 1)
        return torch.cat([five, five.flip(-1)], 1)

    def _cut(self, pixels: Tensor, top: int, left: int) -> Tensor:
        return pixels[:, top : top + self.tall, left : left + self.wide]

    def _draw(self, n: int, below: int) -> list[int]:
        device = None if self.generator is None else self.generator.device
        drawn: list[int] = torch.randint(below, (n,), generator=self.generator, device=device).tolist()
        return drawn

    def _normal(self, crops: Tensor) -> Tensor:
        # The bytes lie channel by channel of each pixel, and stay so: convolutions are quick on them.
        return (crops.permute(0, 3, 1, 2).float() - self.mean) / self.std


class FromPixels(nn.Module):
    """A model that reads one tensor of pixels.

    Args:
        photos: what it sees of them.
        ten_crops: whether it predicts by the mean of ten crops, as probabilities, and not by one.
    """

    def __init__(self, photos: Photos, target: Target, *, ten_crops: bool = False) -> None:
        super().__init__()
        self.photos, self.target, self.ten_crops = photos, target, ten_crops

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, n_outputs)."""
        if self.training or not self.ten_crops:
            return self.outputs(self.photos(pixels))
        crops = self.photos.ten(pixels)
        said = predictions(self.target, self.outputs(crops.flatten(0, 1)).float())
        return outputs_of(self.target, said.view(len(pixels), TEN, -1).mean(1))

    def outputs(self, pictures: Tensor) -> Tensor:
        """(N, 3, size, size) float32 -> (N, n_outputs)."""
        raise NotImplementedError


def outputs_of(target: Target, said: Tensor) -> Tensor:
    """The outputs whose predictions are these, (N, n_outputs)."""
    if isinstance(target, JointTarget):
        return torch.cat([outputs_of(part, said[:, columns]) for part, _, columns in target.slices()], 1)
    if target.kind == "regression":
        return said
    tiny = torch.finfo(said.dtype).tiny
    return said.clamp_min(tiny).log() if target.kind == "multiclass" else said.logit(1e-7)


__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "TEN", "FromPixels", "Photos", "from_pixels", "outputs_of"]
