"""Aesthetics and emotion of one photo, from pixels (Yu et al., AENet)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from heads.labels.target import JointTarget, Kind, Target
from heads.systems.pixels import FromPixels, Photos
from heads.systems.registry import register
from heads.systems.system import KINDS, Build, Option, Options, Shape, Stage, System, from_pixels
from heads.systems.trunks import OnTrunk, Trunk, initial_option, trunk_of, trunk_options
from heads.training.losses import Loss, joint_loss

PAPER = "Yu et al., AENet"
N_STAGES = 4
"""Of a ResNet; the streams are mixed after each."""
STREAMS = ("aesthetics", "emotion", "shared")
MIXING = ("fusion", "stitch")
"""What the scalars are called that mix streams: they have a rate of their own, and weight decay leaves them alone."""
WEIGHTS = (1.0, 0.25)
"""Of the losses of aesthetics and of emotion."""
PARTS: tuple[tuple[Kind, ...], ...] = (("binary", "regression"), ("multiclass", "multilabel", "regression"))
"""The kinds of labels of aesthetics and of emotion."""


class Streams(FromPixels):
    """Networks whose maps are mixed after each of four stages; each is a part of the model by its name."""

    def __init__(
        self, photos: Photos, trunks: Mapping[str, Trunk], target: JointTarget, *, ten_crops: bool = False
    ) -> None:
        super().__init__(photos, target, ten_crops=ten_crops)
        self.streams = tuple(trunks)
        for name, trunk in trunks.items():
            self.add_module(name, trunk)

    def maps(self, pictures: Tensor) -> list[Tensor]:
        """(N, 3, h, w) -> the last map of each stream, mixed after every stage, (N, F, h', w')."""
        trunks: list[Any] = [self.get_submodule(name) for name in self.streams]
        maps = [trunk.stem(pictures) for trunk in trunks]
        for number, stages in enumerate(zip(*(trunk.stages for trunk in trunks), strict=True)):
            maps = self.mix(number, [stage(each) for stage, each in zip(stages, maps, strict=True)])
        return maps

    def mix(self, stage: int, maps: Sequence[Tensor]) -> list[Tensor]:
        """The maps of all streams after a stage -> what the next stage of each is given."""
        raise NotImplementedError


class AENet(Streams):
    """A stream for aesthetics, one for emotion, and one that both take from, fused after each stage.

        A <- ap A + as S;  E <- bp E + bs S;  S as it is
        aesthetics = linear([pool(S), pool(A)]);  emotion = linear([pool(S), pool(E)])

    Args:
        fused: whether the scalars are learned, from 0.9 and 0.1 on; otherwise they are 1 and 0.
    """

    fusion: Tensor
    """(4, 4): of each stage ap, as, bp, bs."""

    def __init__(
        self,
        photos: Photos,
        trunks: Mapping[str, Trunk],
        target: JointTarget,
        *,
        fused: bool = True,
        ten_crops: bool = False,
    ) -> None:
        super().__init__(photos, trunks, target, ten_crops=ten_crops)
        if fused:
            self.fusion = nn.Parameter(torch.tensor([[0.9, 0.1, 0.9, 0.1]]).repeat(N_STAGES, 1))
        else:
            self.register_buffer("fusion", torch.tensor([[1.0, 0.0, 1.0, 0.0]]).repeat(N_STAGES, 1))
        width = 2 * next(iter(trunks.values())).n_features
        aesthetics, emotion = target.parts
        self.aesthetics_out = nn.Linear(width, aesthetics.n_outputs)
        self.emotion_out = nn.Linear(width, emotion.n_outputs)

    def mix(self, stage: int, maps: Sequence[Tensor]) -> list[Tensor]:
        aesthetics, emotion, shared = maps
        ap, as_, bp, bs = self.fusion[stage]
        return [ap * aesthetics + as_ * shared, bp * emotion + bs * shared, shared]

    def outputs(self, pictures: Tensor) -> Tensor:
        aesthetics, emotion, shared = (each.mean((2, 3)) for each in self.maps(pictures))
        said = (
            self.aesthetics_out(torch.cat([shared, aesthetics], 1)),
            self.emotion_out(torch.cat([shared, emotion], 1)),
        )
        return torch.cat(said, 1)

    def learned(self) -> dict[str, Tensor]:
        """`fusion` (4, 4): of each stage ap, as, bp, bs."""
        return {"fusion": self.fusion}


class CrossStitch(Streams):
    """Two streams, each of which takes of the other after each stage (Misra et al., Cross-stitch networks).

    [A; E] <- [[aAA, aAE], [aEA, aEE]] [A; E]
    """

    def __init__(
        self, photos: Photos, trunks: Mapping[str, Trunk], target: JointTarget, *, ten_crops: bool = False
    ) -> None:
        super().__init__(photos, trunks, target, ten_crops=ten_crops)
        self.stitch = nn.Parameter(torch.tensor([[[0.9, 0.1], [0.1, 0.9]]]).repeat(N_STAGES, 1, 1))
        width = next(iter(trunks.values())).n_features
        aesthetics, emotion = target.parts
        self.aesthetics_out = nn.Linear(width, aesthetics.n_outputs)
        self.emotion_out = nn.Linear(width, emotion.n_outputs)

    def mix(self, stage: int, maps: Sequence[Tensor]) -> list[Tensor]:
        aesthetics, emotion = maps
        (aa, ae), (ea, ee) = self.stitch[stage]
        return [aa * aesthetics + ae * emotion, ea * aesthetics + ee * emotion]

    def outputs(self, pictures: Tensor) -> Tensor:
        aesthetics, emotion = (each.mean((2, 3)) for each in self.maps(pictures))
        return torch.cat([self.aesthetics_out(aesthetics), self.emotion_out(emotion)], 1)

    def learned(self) -> dict[str, Tensor]:
        """`stitch` (4, 2, 2): of each stage what aesthetics and emotion take of aesthetics and emotion."""
        return {"stitch": self.stitch}


def _single(shapes: tuple[Shape, ...], target: Target, options: Options) -> OnTrunk:
    trunk = trunk_of(options)
    head = nn.Linear(trunk.n_features, target.n_outputs)
    return OnTrunk(trunk.photos(shapes[0], options), target, trunk, head, ten_crops=options["ten_crops"])


def _aenet(fused: bool) -> Build:
    def build(shapes: tuple[Shape, ...], target: Target, options: Options) -> AENet:
        assert isinstance(target, JointTarget)
        trunks = {name: trunk_of(options) for name in STREAMS}
        photos = trunks["shared"].photos(shapes[0], options)
        return AENet(photos, trunks, target, fused=fused, ten_crops=options["ten_crops"])

    return build


def _cross_stitch(shapes: tuple[Shape, ...], target: Target, options: Options) -> CrossStitch:
    assert isinstance(target, JointTarget)
    trunks = {name: trunk_of(options) for name in STREAMS[:2]}
    photos = trunks["emotion"].photos(shapes[0], options)
    return CrossStitch(photos, trunks, target, ten_crops=options["ten_crops"])


def _loss(target: Target) -> Loss:
    """That of aesthetics, and a quarter of that of emotion."""
    assert isinstance(target, JointTarget)
    return joint_loss(target, WEIGHTS)


def _one_stage(options: Options) -> tuple[Stage, ...]:
    mixing: dict[str, float] = {name: options["mixing_lr"] for name in MIXING if "mixing_lr" in options}
    return (Stage(options["epochs"], options["lr"], rates=mixing, undecayed=("*.bias", *MIXING)),)


_BEGINS = {
    "aesthetics": f"{PAPER}: one that was trained on aesthetics",
    "emotion": f"{PAPER}: one that was trained on emotion",
    "shared": f"{PAPER}: imagenet",
}


def _options(trunk: str = "resnet50", streams: tuple[str, ...] = ()) -> dict[str, Option]:
    own = trunk_options(trunk, PAPER)
    if streams:
        del own["init_trunk"]
        own["mixing_lr"] = Option(1e-2, f"{PAPER}: of the scalars that mix the streams", low=0)
        own |= {f"init_{name}": initial_option("imagenet", _BEGINS[name]) for name in streams}
    return from_pixels(
        PAPER,
        **own,
        optimiser=Option("sgd", PAPER, choices=("adam", "adamw", "sgd")),
        lr=Option(1e-4, PAPER, low=0),
        lr_factor=Option(0.1, "ours: the paper does not say", low=0, high=1),
        lr_every=Option(20, "ours: epochs after which the rate is multiplied by lr_factor", low=1),
        momentum=Option(0.9, "ours: the paper does not say", low=0, high=1),
        weight_decay=Option(5e-4, "ours: the paper does not say; biases and mixing scalars have none", low=0),
        batch=Option(64, PAPER, low=1),
        epochs=Option(30, "ours: the paper does not say", low=1),
        patience=Option(30, "ours: all epochs; the best of them on the inner rows is kept", low=0),
        inner=Option(0.1, f"{PAPER}: share of the training rows that chooses the epoch", low=0, high=0.9),
    )


for name, trunk in (("resnet50-single", "resnet50"), ("wide-resnet-single", "wide_resnet50_2")):
    register(
        System(
            name=name,
            title="a network trained from pixels, one for each task",
            source=f"{PAPER}, its single-task baseline",
            reads=("pixels",),
            kinds=KINDS,
            options=_options(trunk),
            build=_single,
            stages=_one_stage,
            init=("trunk",),
            per_task=True,
        )
    )

register(
    System(
        name="share-split",
        title="one network trained from pixels, with outputs for aesthetics and emotion",
        source=f"{PAPER}, its SSNet",
        reads=("pixels",),
        kinds=KINDS,
        parts=PARTS,
        options=_options(),
        build=_single,
        loss=_loss,
        stages=_one_stage,
        init=("trunk",),
    )
)

register(
    System(
        name="cross-stitch",
        title="two networks trained from pixels that take of each other after every stage",
        source=f"{PAPER}, its CSNet; Misra et al., Cross-stitch networks, CVPR 2016",
        reads=("pixels",),
        kinds=KINDS,
        parts=PARTS,
        options=_options(streams=STREAMS[:2]),
        build=_cross_stitch,
        loss=_loss,
        stages=_one_stage,
        init=STREAMS[:2],
    )
)

for name, title, source, fused in (
    ("aenet", "networks for aesthetics, emotion and both, fused after every stage", PAPER, True),
    ("aenet-nofusion", "the same networks, joined only at the end", f"{PAPER}, its AENet-FL", False),
):
    register(
        System(
            name=name,
            title=title,
            source=source,
            reads=("pixels",),
            kinds=KINDS,
            parts=PARTS,
            options=_options(streams=STREAMS),
            build=_aenet(fused),
            loss=_loss,
            stages=_one_stage,
            init=STREAMS,
        )
    )
