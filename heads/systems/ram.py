"""RAM, the recurrent attention model: glimpses at places that it learns to choose (Mnih et al. 2014; Suhail et al.)."""

from functools import partial, reduce
from math import log, pi, sqrt

import torch
from torch import Tensor, nn
from torch.nn import functional

from heads.errors import FeaturesError, UnknownSystemError
from heads.labels.target import Target
from heads.systems.layers import Attentive
from heads.systems.pixels import IMAGENET_MEAN, IMAGENET_STD
from heads.systems.registry import register
from heads.systems.system import Option, Options, Shape, System, from_whole_photos
from heads.training.losses import masked_loss

PAPER = "Suhail et al."
CODE = "Element-Research/rnn"
"""Its recurrent-visual-attention.lua, whose defaults are the figures that the paper gives."""


class Pooled(nn.Module):
    """The centre of stored photos, pooled to `size` x `size` means of as many whole pixels, and then standardised.

    Args:
        shape: of a stored photo, (H, W, 3); what it has beyond a whole multiple of `size` is cut off evenly.

    Raises:
        FeaturesError: a stored photo is smaller than `size`.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, shape: Shape, size: int) -> None:
        super().__init__()
        self.height, self.width = shape[:2]
        if (least := min(self.height, self.width)) < size:
            raise FeaturesError(
                f"the stored photos have {self.width} x {self.height} pixels, the head pools them to {size} x {size}; "
                f"store larger ones, or say --set size={least}"
            )
        self.factor = least // size
        self.across = self.factor * size
        self.top, self.left = (self.height - self.across) // 2, (self.width - self.across) // 2
        self.register_buffer("mean", 255 * torch.tensor(IMAGENET_MEAN).view(3, 1, 1), persistent=False)
        self.register_buffer("std", 255 * torch.tensor(IMAGENET_STD).view(3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, 3, size, size) float32."""
        centre = pixels[:, self.top : self.top + self.across, self.left : self.left + self.across]
        # On a CPU these sums of bytes take a tenth of the time of torch's pooling of floats.
        rows: Tensor = reduce(torch.add, (centre[:, i :: self.factor].int() for i in range(self.factor)))
        cells: Tensor = reduce(torch.add, (rows[:, :, i :: self.factor] for i in range(self.factor)))
        return (cells.permute(0, 3, 1, 2) / self.factor**2 - self.mean) / self.std

    def edges(self, places: Tensor, side: int) -> Tensor:
        """Where squares of so many pooled pixels lie in the stored photo.

        Args:
            places: (..., 2), as a `Retina` takes them.

        Returns:
            (..., 4): left, top, right, bottom, from 0 to 1 across the photo.
        """
        corner, whole = places.new_tensor([self.left, self.top]), places.new_tensor([self.width, self.height])
        centre = corner + (places + 1) / 2 * self.across
        half = side * self.factor / 2
        return torch.cat([(centre - half) / whole, (centre + half) / whole], -1)


class Retina(nn.Module):
    """What is seen at a place: patches around one centre, each `scale` times as wide as the one before.

    Args:
        side: of the narrowest patch in pixels; the others are average-pooled to it.
        scale: a whole number.
        n_patches: how many.

    A place is (x, y), x to the right and y downwards: -1 is the left or the upper edge of the picture, 1 the other
    one. There is the centre of the patches; their first pixel is the nearest whole one. Beyond the picture all is 0.
    """

    def __init__(self, side: int, scale: int, n_patches: int) -> None:
        super().__init__()
        self.side, self.factors = side, [scale**i for i in range(n_patches)]
        self.margin = side * self.factors[-1] // 2 + 1

    def pad(self, pictures: Tensor) -> Tensor:
        """(N, 3, H, W) -> the same within a margin of zeros, as `forward` takes them."""
        return functional.pad(pictures, (self.margin,) * 4)

    def forward(self, padded: Tensor, places: Tensor) -> Tensor:
        """Pictures from `pad`, a place (N, 2) in each -> (N, 3 * n_patches, side, side), the narrowest first."""
        height, width = (n - 2 * self.margin for n in padded.shape[2:])
        # A model that has diverged looks anywhere; its loss, which is no number, says so.
        centres = (places.nan_to_num() + 1) / 2 * places.new_tensor([width, height])
        rows, patches = torch.arange(len(padded), device=padded.device), []
        for factor in self.factors:
            across = self.side * factor
            left, top = ((centres - across / 2 + 0.5).floor().long() + self.margin).unbind(1)
            windows = padded.unfold(2, across, 1).unfold(3, across, 1)  # a view of every window: nothing is copied
            patches.append(functional.avg_pool2d(windows[rows, :, top, left], factor))
        return torch.cat(patches, 1)


class RAM(Attentive):
    """A few glimpses at a photo, each where the state after those before says, and then a class.

    N photos, T glimpses, H the width of the state h (0 before the first glimpse); see is a linear map or a small CNN.

        mu_t = hardtanh(locator(h_(t-1)));  z_t = mu_t + sd n, n ~ N(0, 1);  l_t = clip(z_t, -1, 1)
        g_t = ReLU(W1 [ReLU(see(x_t)), ReLU(Wl l_t)]) with x_t what the retina shows at l_t
        h_t = ReLU(W2 g_t + Wh h_(t-1) + b), or an LSTM;  outputs = Wc h_T

    Places have noise in training only. A class is learned by its usual loss, after the last glimpse. Places are learned
    by REINFORCE (Williams 1992): the reward R of all places in a photo is 1 if its class is right and 0 if not.

        loss = usual + (baseline - R)^2 - policy * sum_t log N(z_t; mu_t, sd) (R - baseline), means over photos

    Args:
        photos: what it looks at, of stored photos.
        target: with several tasks, R is the share of a photo's labels that are right.
        see: patches (N, 3 * n_patches, side, side) -> (N, n_seen).
        locator_hidden: width of a hidden layer with ReLU in the locator; 0: none.
        lstm: the core.
        sd: of the noise; 1 is half a photo.
        into_core: the gradient of the places goes on into core and glimpse network, and not into the locator alone.
        policy: weight of the term that places are learned by.
        uniform: all weights begin between minus and plus this; 0: as torch begins.
    """

    def __init__(
        self,
        photos: Pooled,
        target: Target,
        retina: Retina,
        see: nn.Module,
        *,
        n_seen: int,
        n_where: int,
        n_joined: int,
        hidden: int,
        locator_hidden: int,
        lstm: bool,
        n_glimpses: int,
        sd: float,
        into_core: bool,
        policy: float,
        uniform: float,
    ) -> None:
        super().__init__()
        self.photos, self.retina, self.see = photos, retina, see
        self.where, self.joined = nn.Linear(2, n_where), nn.Linear(n_seen + n_where, n_joined)
        self.core: nn.Module = (
            nn.LSTMCell(n_joined, hidden) if lstm else nn.RNNCell(n_joined, hidden, nonlinearity="relu")
        )
        self.locator = _locator(hidden, locator_hidden)
        self.out = nn.Linear(hidden, target.n_outputs)
        for parameter in self.parameters() if uniform else ():
            nn.init.uniform_(parameter, -uniform, uniform)
        # A constant, as in Element-Research/rnn. It begins at chance, as Adam would take 1500 steps from 0.
        self.baseline = nn.Parameter(torch.tensor(1 / max(2, len(target.classes))))
        self.n_glimpses, self.sd, self.into_core, self.policy = n_glimpses, sd, into_core, policy
        self.multiclass, self.usual = target.kind == "multiclass", masked_loss(target)
        self.generator: torch.Generator | None = None

    def forward(self, *features: Tensor) -> Tensor:
        """Pixels (N, H, W, 3) -> logits (N, n_outputs) after the last glimpse."""
        return self.look(*features)[0]

    def attend(self, *features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The outputs, and the edges of the narrowest patch of each glimpse: `glimpses` (N, T, 4), as `ATTENTION_AXES`
        in runs/attention.py says.
        """
        outputs, _, places = self.look(*features)
        return outputs, {"glimpses": self.photos.edges(places.clamp(-1, 1), self.retina.side)}

    def look(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Pixels (N, H, W, 3) -> logits (N, n_outputs); and (N, T, 2) each: the means of the places, and the places as
        they were drawn, which may lie beyond the photo.
        """
        padded = self.retina.pad(self.photos(pixels))
        state = padded.new_zeros(len(padded), self.out.in_features)
        memory, means, drawn = torch.zeros_like(state), [], []
        for _ in range(self.n_glimpses):
            mean = functional.hardtanh(self.locator(state if self.into_core else state.detach()).to(padded))
            # Detached: through a place that follows the mean the gradient of its density is 0, and places would learn
            # from the usual loss by way of `where`.
            place = mean.detach() + self.sd * self._noise(mean)
            glimpse = self._glimpse(padded, place.clamp(-1, 1))
            if isinstance(self.core, nn.LSTMCell):
                state, memory = self.core(glimpse, (state, memory))
            else:
                state = self.core(glimpse, state)
            means.append(mean)
            drawn.append(place)
        return self.out(state), torch.stack(means, 1), torch.stack(drawn, 1)

    def losses(self, labels: Tensor, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Labels (N, K), NaN where missing, and pixels -> the usual loss, and that of baseline and places."""
        outputs, means, drawn = self.look(pixels)
        reward = self._reward(outputs.detach(), labels)
        advantage = (reward - self.baseline).detach()
        # Of the place as it was drawn: N(l; mu, sd) is no density of a place that was clipped.
        density = -0.5 * ((drawn - means) / self.sd).square() - log(self.sd * sqrt(2 * pi))
        places = density.sum((1, 2)) * advantage
        return self.usual(outputs.float(), labels), ((self.baseline - reward).square() - self.policy * places).mean()

    def training_loss(self, labels: Tensor, pixels: Tensor) -> Tensor:
        """The usual loss, with the gradients of both: so it stands in the history beside that of the inner rows."""
        usual, places = self.losses(labels, pixels)
        return usual + places - places.detach()

    def learned(self) -> dict[str, Tensor]:
        """`first_glimpse` (2,), the place (x, y) where it begins to look; and the `baseline` of the reward."""
        with torch.no_grad():
            start = self.out.weight.new_zeros(1, self.out.in_features)
            return {"first_glimpse": functional.hardtanh(self.locator(start))[0], "baseline": self.baseline[None]}

    def _glimpse(self, padded: Tensor, places: Tensor) -> Tensor:
        seen = torch.relu(self.see(self.retina(padded, places)))
        return torch.relu(self.joined(torch.cat([seen, torch.relu(self.where(places))], 1))).to(places)

    def _noise(self, like: Tensor) -> Tensor:
        if not self.training:
            return torch.zeros_like(like)
        return torch.randn(like.shape, generator=self.generator, device=like.device)

    def _reward(self, outputs: Tensor, labels: Tensor) -> Tensor:
        said = outputs.argmax(1, keepdim=True) if self.multiclass else outputs > 0
        known = labels.isfinite()
        return ((said == labels) & known).sum(1) / known.sum(1).clamp_min(1)


def _locator(n_inputs: int, hidden: int) -> nn.Module:
    if not hidden:
        return nn.Linear(n_inputs, 2)
    return nn.Sequential(nn.Linear(n_inputs, hidden), nn.ReLU(), nn.Linear(hidden, 2))


def _small_cnn(n_channels: int, side: int, n_seen: int) -> nn.Module:
    """Of `ram-lstm`: two convolutions, a max pool, a linear map."""
    return nn.Sequential(
        nn.Conv2d(n_channels, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 32, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(32 * (side // 2) ** 2, n_seen),
    )


def _ram(shapes: tuple[Shape, ...], target: Target, options: Options, *, later: bool) -> RAM:
    """
    Raises:
        FeaturesError: stored photos are smaller than what they are pooled to.
        UnknownSystemError: the widest patch is wider than any place needs.
    """
    size, side, n_seen = options["size"], options["glimpse"], options["seen"]
    retina = Retina(side, options["scale"], options["patches"])
    if (widest := side * retina.factors[-1]) > 2 * size:
        raise UnknownSystemError(
            f"the widest patch, glimpse * scale ** (patches - 1), has {widest} pixels; {2 * size} show all of a photo "
            "from anywhere: choose a smaller glimpse or scale, or fewer patches"
        )
    n_channels = 3 * options["patches"]
    linear = nn.Sequential(nn.Flatten(), nn.Linear(n_channels * side**2, n_seen))
    return RAM(
        Pooled(shapes[0], size),
        target,
        retina,
        _small_cnn(n_channels, side, n_seen) if later else linear,
        n_seen=n_seen,
        n_where=options["where"],
        n_joined=options["joined"],
        hidden=options["hidden"],
        locator_hidden=options["locator_hidden"],
        lstm=later,
        n_glimpses=options["glimpses"],
        sd=options["sd"],
        into_core=options["into_core"],
        policy=options["policy"],
        uniform=options["uniform"],
    )


def _options() -> dict[str, Option]:
    return from_whole_photos(
        PAPER,
        size=Option(128, "ours, the paper does not say: side that photos are pooled to", low=1),
        glimpse=Option(16, f"{PAPER}: side of the narrowest patch", low=2),
        scale=Option(2, f"{PAPER}: how many times as wide the next one is", low=1, high=8),
        patches=Option(3, "ours, the paper does not say: patches of a glimpse", low=1, high=8),
        glimpses=Option(7, PAPER, low=1),
        seen=Option(128, f"{CODE}: width of what is seen", low=1),
        where=Option(128, f"{CODE}: width of where it is seen", low=1),
        joined=Option(256, f"{CODE}: width of both together", low=1),
        hidden=Option(256, f"{CODE}: width of the state", low=1),
        locator_hidden=Option(128, "ours: hidden layer before places; none (0) in Element-Research/rnn", low=0),
        sd=Option(0.22, f"{CODE}: noise of places in training; 1 is half a photo", low=0.001, high=2),
        into_core=Option(True, f"{CODE}: places teach core and glimpses; Mnih et al.: the locator alone"),
        policy=Option(1.0, f"{CODE}: weight of what places learn by", low=0),
        uniform=Option(0.1, f"{CODE}: weights begin in -0.1 .. 0.1; 0: as torch begins", low=0),
        lr=Option(3e-4, "kevinzakka/recurrent-visual-attention; 0.01 of sgd in Element-Research/rnn", low=0),
        clip=Option(1.0, "ours: largest norm of the gradient; 0: none", low=0),
        batch=Option(32, "ours, the paper does not say; 20 in Element-Research/rnn", low=1),
        epochs=Option(50, PAPER, low=1),
        patience=Option(50, "ours: all epochs; the best of them on the inner rows is kept", low=0),
        optimiser=Option("adam", "kevinzakka; sgd in Element-Research/rnn", choices=("adam", "adamw", "sgd")),
    )


for name, title, later in (
    ("ram", "glimpses at places that it learns to choose", False),
    ("ram-lstm", "the same with an LSTM and convolutions", True),
):
    register(
        System(
            name=name,
            title=title,
            source=f"{PAPER}{', future work' if later else ''}; Mnih et al. 2014",
            reads=("pixels",),
            kinds=("binary", "multiclass", "multilabel"),
            options=_options(),
            build=partial(_ram, later=later),
        )
    )
