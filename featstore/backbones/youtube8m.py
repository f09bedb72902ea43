"""Y of the 11414 set: what a classifier trained on YouTube-8M sees in a photo (Pournaras et al., MediaEval 2021).

The paper's: Inception-v3's last hidden layer, Conv1D with 64 filters, max pooling, dropout, 3862 sigmoids. It gives no
kernel, no pool size and no direction. The same group's earlier network for the same data set does (Gkalelis and
Mezaris, "Subclass Deep Neural Networks", MMM 2020, and its public code), and is followed here: the features are
scaled to length one, the convolution runs along the features as a sequence of one channel, three wide, padded, with a
ReLU, and the maximum is taken of every two neighbours. (Dropout does nothing once training is over.) A convolution
along time would see one frame only, and its 64 numbers would have to tell 3862 classes apart.

Ours: the 2048 features first become 1024. YouTube-8M publishes its frames only so, by a principal component analysis
with whitening; both are one affine map, and it is part of the weights. No audio. Filters are laid out as Keras does,
so that trained weights of the public code fit when transposed.
"""

import timm
from torch import Tensor, nn
from torch.nn import functional as F

N_CLASSES = 3862
N_FILTERS = 64
N_PUBLISHED = 1024
"""Width of the features that YouTube-8M publishes of a frame."""


def build() -> nn.Module:
    """The whole network: `trunk` is timm's Inception-v3, `top` is what is described above."""
    return YouTube8M(timm.create_model("inception_v3", pretrained=False, num_classes=0))


class YouTube8M(nn.Module):
    def __init__(self, trunk: nn.Module) -> None:
        super().__init__()
        self.trunk, self.top = trunk, Classifier()

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 3862) probabilities."""
        probabilities: Tensor = self.top(self.trunk(pixels))
        return probabilities


class Classifier(nn.Module):
    """From the features of a frame to the probability of each class."""

    def __init__(self) -> None:
        super().__init__()
        self.reduce = nn.Linear(2048, N_PUBLISHED)
        self.conv = nn.Conv1d(1, N_FILTERS, kernel_size=3, padding=1)
        self.classify = nn.Linear(N_PUBLISHED // 2 * N_FILTERS, N_CLASSES)

    def forward(self, features: Tensor) -> Tensor:
        """(N, 2048) -> (N, 3862) between 0 and 1."""
        published = F.normalize(self.reduce(features), dim=1)
        filtered = F.max_pool1d(F.relu(self.conv(published.unsqueeze(1))), 2)  # (N, 64, 512)
        logits: Tensor = self.classify(filtered.transpose(1, 2).flatten(1))
        return logits.sigmoid()
