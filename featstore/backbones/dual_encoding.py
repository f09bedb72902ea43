"""Backbone S of the 11414 set: a photo's embedding in the space of a video-text retrieval network.

The visual branch of the dual-encoding network (Dong et al., "Dual Encoding for Zero-Example Video Retrieval", CVPR
2019) with attention (Galanopoulos and Mezaris, "Attention Mechanisms, Signal Encodings and Fusion Strategies for
Improved Ad-hoc Video Search with Dual Encoding Networks", ICMR 2020). Theirs, in the papers or in the public code:
ResNet-152 features of each frame, scaled to length one; level 1, their mean; level 2, a bidirectional GRU of 1024 units
each way, whose outputs are weighed by attention; level 3, convolutions over 2, 3, 4 and 5 weighed outputs, 512 filters
each, ReLU, the maximum over time; all three joined, fully connected to 2048, batch normalisation, length one.

Ours: the attention is a softmax over the frames and level 2 the weighted mean. The public code's softmax runs over an
axis of one, which leaves every weight at 1. A photo is a video of one frame, on which all of this is the same. The
tensors of `top` have the names and shapes of the public code's visual branch, so that its checkpoints fit there.
"""

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 2048
"""Of a frame's features, of both directions of the GRU together, and of the space shared with text."""
N_FILTERS = 512
KERNELS = (2, 3, 4, 5)


def build() -> nn.Module:
    """The whole network: `trunk` is timm's ResNet-152, `top` is what is described above."""
    return DualEncoding(timm.create_model("resnet152", pretrained=False, num_classes=0))


class DualEncoding(nn.Module):
    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.top = trunk, VideoEncoder()

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W), each a video of one frame -> (N, 2048) of length one."""
        embedded: Tensor = self.top(self.trunk(pixels).unsqueeze(1))
        return embedded


class VideoEncoder(nn.Module):
    """From the features of a video's frames to its place in the common space."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = nn.GRU(WIDTH, WIDTH // 2, batch_first=True, bidirectional=True)
        self.atten = nn.ModuleDict({"fc1": nn.Linear(WIDTH, WIDTH), "fc2": nn.Linear(WIDTH, 1)})
        self.convs1 = nn.ModuleList(
            nn.Conv2d(1, N_FILTERS, (kernel, WIDTH), padding=(kernel - 1, 0)) for kernel in KERNELS
        )
        joined = 2 * WIDTH + len(KERNELS) * N_FILTERS
        self.visual_mapping = nn.ModuleDict({"fc1": nn.Linear(joined, WIDTH), "bn_1": nn.BatchNorm1d(WIDTH)})

    def forward(self, frames: Tensor) -> Tensor:
        """(N, frames, 2048) -> (N, 2048) of length one."""
        frames = F.normalize(frames, dim=2)
        outputs, _ = self.rnn(frames)
        weighed = outputs * self._attention(outputs)
        levels = torch.cat([weighed.sum(1), self._local(weighed), frames.mean(1)], dim=1)
        mapping = self.visual_mapping
        return F.normalize(mapping["bn_1"](mapping["fc1"](levels)), dim=1)

    def _attention(self, outputs: Tensor) -> Tensor:
        """(N, frames, 2048) -> (N, frames, 1), which sum to one over the frames."""
        scores: Tensor = self.atten["fc2"](self.atten["fc1"](outputs).tanh())
        return scores.softmax(1)

    def _local(self, outputs: Tensor) -> Tensor:
        """(N, frames, 2048) -> (N, 2048): for each filter the largest answer over time."""
        return torch.cat([conv(outputs.unsqueeze(1)).relu().amax((2, 3)) for conv in self.convs1], dim=1)
