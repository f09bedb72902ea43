"""AMTL's networks from scratch: trained from pixels with its attention, or without it (Ghosal and Kolekar).

They are the paper's controls: what AMTL gains by pretrained networks, and by attention and sharing.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from heads.errors import UnknownSystemError
from heads.labels.target import Target
from heads.systems.amtl import AMTL, PAPER
from heads.systems.layers import Attentive, Dropout
from heads.systems.pixels import Photos
from heads.systems.registry import register
from heads.systems.system import KINDS, OURS, Option, Options, Shape, System, from_whole_photos
from heads.systems.trunks import Trunk

TRUNKS = "inception_v3,legacy_xception,resnet50,densenet201"


class Trunks(nn.Module):
    """Networks side by side, each pooled by the maximum of its last map (the paper, section 3)."""

    def __init__(self, photos: Photos, trunks: Sequence[Trunk]) -> None:
        super().__init__()
        self.photos = photos
        self.networks = nn.ModuleList(trunks)
        self.widths = [trunk.n_features for trunk in trunks]

    def forward(self, pixels: Tensor) -> list[Tensor]:
        """(N, H, W, 3) uint8 -> the feature of each network, (N, F)."""
        pictures = self.photos(pixels)
        return [network(pictures).amax((2, 3)) for network in self.networks]


class AMTLScratch(Attentive):
    """AMTL on blocks that its networks learn to see, (N, T, H, W, 3) in place of features."""

    def __init__(self, trunks: Trunks, head: AMTL) -> None:
        super().__init__()
        self.trunks, self.head = trunks, head

    def attend(self, *features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """As `AMTL.attend`, of the blocks of photos."""
        return self.head.attend(self.stack(features[0]))

    def stack(self, pixels: Tensor) -> Tensor:
        """(N, T, H, W, 3) uint8 -> (N, B, T, F), each network padded with zeros to the widest."""
        n, t = pixels.shape[:2]
        widest = max(self.trunks.widths)
        found = self.trunks(pixels.flatten(0, 1))
        return torch.stack([pad(each, (0, widest - each.shape[1])).view(n, t, widest) for each in found], 1)


class STLScratch(nn.Module):
    """The same networks on whole photos, joined, then two hidden layers: one model a task, no attention."""

    def __init__(
        self, trunks: Trunks, target: Target, *, hidden1: int, hidden2: int, dropout: float, squash: bool
    ) -> None:
        super().__init__()
        self.trunks, self.squash = trunks, squash
        self.hidden1 = nn.Linear(sum(trunks.widths), hidden1)
        self.hidden2 = nn.Linear(hidden1, hidden2)
        self.out = nn.Linear(hidden2, target.n_outputs)
        self.dropout = Dropout(dropout)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, H, W, 3) uint8 -> (N, n_outputs)."""
        hidden = torch.relu(self.hidden1(torch.cat(self.trunks(pixels), 1)))
        out: Tensor = self.out(self.dropout(torch.relu(self.hidden2(hidden))))
        return torch.tanh(out) if self.squash else out


def _trunks(shape: Shape, options: Options) -> Trunks:
    """
    Raises:
        UnknownSystemError: no network is named.
    """
    names = [name.strip() for name in str(options["trunks"]).split(",") if name.strip()]
    if not names:
        raise UnknownSystemError("--set trunks=: name one network or more, as inception_v3,resnet50")
    made = [Trunk(name, layers=options["layers"], width=options["width"]) for name in names]
    photos = Photos(shape, None, random=False, flip=False, mean=made[0].mean, std=made[0].std)
    return Trunks(photos, made)


def _amtl_scratch(shapes: tuple[Shape, ...], target: Target, options: Options) -> AMTLScratch:
    trunks = _trunks(shapes[0], options)
    classes = target.kind == "multiclass"
    head = AMTL(
        max(trunks.widths),
        len(target.tasks),
        attention=options["attention"],
        hidden=options["hidden"],
        dropout=options["dropout"],
        n_outputs=len(target.classes) if classes else 1,
        squash=target.kind == "regression",
    )
    return AMTLScratch(trunks, head)


def _stl_scratch(shapes: tuple[Shape, ...], target: Target, options: Options) -> STLScratch:
    return STLScratch(
        _trunks(shapes[0], options),
        target,
        hidden1=options["hidden1"],
        hidden2=options["hidden2"],
        dropout=options["dropout"],
        squash=target.kind == "regression",
    )


def _options(**own: Option) -> dict[str, Option]:
    return from_whole_photos(
        PAPER,
        trunks=Option(TRUNKS, f"{PAPER}: networks like these four, from random weights"),
        layers=Option("", "of ResNets, blocks of each stage, as 1,1,1,1; as released if empty"),
        width=Option(1.0, "of ResNets, how many times as wide as released", low=0.01, high=8),
        **own,
        micro=Option(4, "ours: photos at a time, with batch norms over as many; 0: the whole batch", low=0),
    )


register(
    System(
        name="amtl-scratch",
        title="amtl with networks that learn from random weights, on blocks of pixels",
        source=PAPER,
        reads=("pixel-grid",),
        kinds=KINDS,
        options=_options(
            attention=Option(128, OURS, low=1),
            hidden=Option(256, PAPER, low=1),
            dropout=Option(0.5, PAPER, low=0, high=0.99),
        ),
        build=_amtl_scratch,
    )
)

register(
    System(
        name="stl-scratch",
        title="the same networks on whole photos, without attention, one model for each task",
        source=PAPER,
        reads=("pixels",),
        kinds=KINDS,
        options=_options(
            hidden1=Option(512, OURS, low=1),
            hidden2=Option(128, OURS, low=1),
            dropout=Option(0.5, PAPER, low=0, high=0.99),
        ),
        build=_stl_scratch,
        per_task=True,
    )
)
