"""DMA-Net: is a photo of high or low quality, from several crops of it at once (Lu et al., 2015)."""

from collections.abc import Callable, Iterator, Mapping
from itertools import cycle, islice

import torch
from torch import Tensor, nn

from heads.labels.target import KINDS, Target
from heads.systems.caffe import he
from heads.systems.rapid import (
    LU,
    Column,
    Rapid,
    View,
    column_of,
    delta_of,
    one_stage,
    rapid_loss,
    rapid_options,
    view_of,
)
from heads.systems.registry import register
from heads.systems.system import Option, Options, Shape, System
from heads.systems.trunks import initial_option

PAPER = "Lu et al., Deep multi-patch aggregation network (2015)"


def statistics(crops: Tensor) -> Tensor:
    """Of P crops of a photo (N, P, units) -> the least, largest, median and mean of each unit, (N, 4 units)."""
    ordered = crops.sort(1).values
    n = ordered.shape[1]
    median = (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2
    return torch.cat([ordered[:, 0], ordered[:, -1], median, ordered.mean(1)], 1)


def sorting(crops: Tensor) -> Tensor:
    """Of P crops of a photo (N, P, units) -> each unit from the least to the largest, (N, P units)."""
    return crops.sort(1).values.flatten(1)


AGGREGATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {"statistics": statistics, "sorting": sorting}
"""What is made of the crops of a photo; in which order they come changes nothing."""
N_STATISTICS = 4


class Patches(Rapid):
    """One column for all crops of a photo; what it makes of them, together, says the class.

    Training draws the crops of a photo anew in every epoch. A prediction is the mean probability over bags of crops, at
    places that are the same for every photo.

    Args:
        view: of random crops.
        units: width of the column.
        patches: crops of a bag, P; where a photo has fewer places, some come more than once.
        aggregation: of `AGGREGATIONS`.
        joined: width of the layer between.
    """

    def __init__(
        self,
        view: View,
        column: Column,
        units: int,
        target: Target,
        *,
        patches: int,
        aggregation: str,
        joined: int,
        delta: float = 0.0,
    ) -> None:
        super().__init__(target, delta=delta)
        self.view, self.trunk, self.patches, self.aggregation = view, column, patches, aggregation
        width = units * (N_STATISTICS if aggregation == "statistics" else patches)
        self.joined = nn.Sequential(nn.Linear(width, joined), nn.ReLU())
        he(self.joined)
        self.classifier = nn.Linear(joined, target.n_outputs)

    def logits(self, *pixels: Tensor) -> Iterator[Tensor]:
        """One tensor; (N, n_outputs) of each bag."""
        n_looks = self.patches if self.training else 1  # in training, a look is one crop
        said = [self.trunk(crop) for _ in range(n_looks) for crop in self.view.pictures(*pixels)]
        for first in range(0, len(said), self.patches):
            bag = torch.stack(list(islice(cycle(said), first, first + self.patches)), 1)
            yield self.classifier(self.joined(AGGREGATIONS[self.aggregation](bag)))


def _build(shapes: tuple[Shape, ...], target: Target, options: Options) -> Patches:
    return Patches(
        view_of("random", shapes[0], options),
        column_of(options),
        options["units"],
        target,
        delta=delta_of(target, options),
        **{name: options[name] for name in ("patches", "aggregation", "joined")},
    )


register(
    System(
        name="dma-net",
        title="high or low quality, several crops of a photo through one column",
        source=PAPER,
        reads=("pixels",),
        kinds=KINDS,
        options=rapid_options(
            aggregation=Option(
                "statistics",
                f"{PAPER}: of each unit, statistics or sorting over the crops",
                choices=tuple(AGGREGATIONS),
            ),
            patches=Option(5, f"{LU}: crops of a photo that are seen together", low=1),
            joined=Option(256, f"{LU}: of the layer behind them", low=1),
            init_trunk=initial_option("random", LU),
        ),
        build=_build,
        loss=rapid_loss,
        stages=one_stage,
        init=("trunk",),
    )
)
