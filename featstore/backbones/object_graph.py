"""Backbone G of the 11414 set: the objects detected in a photo, and their similarity.

ObjectGraphs (Gkalelis, Goulas, Galanopoulos and Mezaris, CVPR workshops 2021), named by Pournaras et al., MediaEval
2021. Theirs, in the papers or in the public code: the best 50 objects of a Faster R-CNN, the ResNet-152 features of
each, a graph whose edge from object i to j is the square of (Wq x_i + bq).(Wk x_j + bk) divided by the sum of row i,
two graph convolutions (ReLU of the layer norm of edges X W), and the mean over the objects.

Ours: the detector is torchvision's, with a ResNet-50 (theirs has a ResNet-101 trained on Visual Genome). An object is
what it gives a score of 0.05 or more; where there are fewer than 50, the whole photo is one more, so that a photo in
which nothing is found is described by itself. Every box is sampled to 224x224. The tensors of `graph` have the names
and shapes of the public code's, those of `detector` and `trunk` of torchvision's and timm's.

Which objects are found is a matter of yes or no: a detector's last digit on another machine can change a feature by
more than its last digit.
"""

import timm
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models.detection import fasterrcnn_resnet50_fpn  # type: ignore[import-untyped]
from torchvision.ops import roi_align  # type: ignore[import-untyped]

from featstore.backbones.card import IMAGENET_MEAN, IMAGENET_STD

WIDTH = 2048
CROP = 224


def build(*, n_objects: int = 50, min_score: float = 0.05, detector_side: int = 800) -> nn.Module:
    """The whole network: `detector`, `trunk` and `graph`.

    `detector_side` is the length in pixels that a photo's shorter side is brought to for the detector. Other values
    than these make another network: raise the version on the card with them.
    """
    detector = fasterrcnn_resnet50_fpn(
        weights=None,
        weights_backbone=None,
        min_size=detector_side,
        box_score_thresh=min_score,
        box_detections_per_img=n_objects,
    )
    for module in detector.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eps = 0.0  # as torchvision runs its public weights of this detector (COCO_V1)
    trunk = timm.create_model("resnet152", pretrained=False, num_classes=0)
    return ObjectGraph(detector, trunk, n_objects=n_objects)


class ObjectGraph(nn.Module):
    """Pixels between 0 and 1 in: the detector normalises for itself, the trunk gets its own here."""

    recordable = False
    """Each photo has its own number of objects, so no engine can record the network once for all."""
    mean: Tensor
    std: Tensor

    def __init__(self, detector: nn.Module, trunk: nn.Module, *, n_objects: int) -> None:
        super().__init__()
        self.detector, self.trunk, self.graph = detector, trunk, Graph()
        self.n_objects = n_objects
        self.register_buffer("mean", torch.tensor(IMAGENET_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGENET_STD).view(1, 3, 1, 1), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, 2048).

        Raises:
            RuntimeError: it is being recorded, to be replayed on other photos.
        """
        traced = torch.jit.is_tracing()  # type: ignore[attr-defined,no-untyped-call]
        if traced or (pixels.is_cuda and torch.cuda.is_current_stream_capturing()):
            # A recording would keep the number of objects that it was made with, and say nothing.
            raise RuntimeError("an object graph cannot be recorded: each photo has its own number of objects")
        # One at a time, so that the objects found in a photo do not depend on those beside it.
        return torch.stack([self.graph(self.describe(image, self.find(image))) for image in pixels])

    def find(self, image: Tensor) -> Tensor:
        """(3, H, W) -> (K, 4) boxes x1, y1, x2, y2 in pixels, the best first, K >= 1."""
        boxes: Tensor = self.detector([image])[0]["boxes"]
        if len(boxes) >= self.n_objects:
            return boxes
        height, width = image.shape[1:]
        return torch.cat([boxes, boxes.new_tensor([[0, 0, width, height]])])

    def describe(self, image: Tensor, boxes: Tensor) -> Tensor:
        """(3, H, W) and (K, 4) -> (K, 2048) features of what is in the boxes."""
        crops = roi_align(image.unsqueeze(0), [boxes], output_size=CROP, aligned=True)
        features: Tensor = self.trunk((crops - self.mean) / self.std)
        return features


class Graph(nn.Module):
    """From the features of some objects to one feature of them all."""

    exact = True
    """Computes in float32 whatever the precision, so its weights stay in it."""

    def __init__(self, n_layers: int = 2) -> None:
        super().__init__()
        self.wq, self.wk = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, WIDTH)
        self.gcn = nn.ModuleList(GraphConvolution() for _ in range(n_layers))

    def forward(self, objects: Tensor) -> Tensor:
        """(K, 2048) -> (2048,)."""
        with torch.autocast(objects.device.type, enabled=False):  # the squares may be more than half precision holds
            objects = objects.float()
            edges = F.normalize((self.wq(objects) @ self.wk(objects).T).square(), p=1, dim=1)
            for layer in self.gcn:
                objects = layer(objects, edges)
            return objects.mean(0)


class GraphConvolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(nn.init.xavier_uniform_(torch.empty(WIDTH, WIDTH)))
        self.norm = nn.LayerNorm(WIDTH)

    def forward(self, objects: Tensor, edges: Tensor) -> Tensor:
        """(K, 2048) and (K, K) -> (K, 2048)."""
        mixed: Tensor = self.norm(edges @ (objects @ self.weight))
        return mixed.relu()
