"""AMTL for few photos: its two attentions with a kernel machine that is solved at once.

Attention that is learnt by gradient from some hundred photos overfits. Here every feature attends to the blocks where
it is strong, as in the multi-dimensional attention of Shen et al. (DiSAN, 2018); a task attends to the backbones in
which photos that are rated alike look alike, by the centred alignment of kernels of Cortes et al. (2012); photos are
compared along the principal axes of their tokens, the longer ones stretched; and kernel ridge regression takes the
place of the hidden layer. All of it is in closed form.

What each gave on 900 photos of OASIS: Pearson for valence, arousal and beauty, and their mean, of 5-fold inner
validation, groups kept together, averaged over the training parts of 5 folds.

    ridge regression on whole photos                        .614 .617 .731  .654
    kernel ridge regression on whole photos                 .644 .606 .742  .664
    tokens of length 1                                      .645 .628 .746  .673
    blocks beside the whole photo, the mean of them         .647 .638 .755  .680
    attention over the blocks, feature by feature           .648 .656 .756  .687
    attention over the backbones, task by task              .648 .655 .755  .686: for what it shows, not for accuracy
    along 256 principal axes                                .659 .661 .765  .695
    the axes stretched                                      .659 .671 .767  .699
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from heads.labels.target import Target
from heads.systems.layers import Attentive, take_sizes
from heads.systems.registry import register
from heads.systems.system import Option, Options, Sample, Shape, System, by_solving

Matrix = NDArray[np.float64]
AT_ONCE = 64
"""Images whose blocks are attended to at a time, while fitting."""


class AMTLPlus(Attentive):
    """Attention over blocks and backbones, and sums of Gaussians around the M images that it was fitted to.

    N images, B backbones, T blocks, F features, K tasks; f[i,j] is block j of backbone i, w the whole photo, all
    standardised; t[0] = w / |w| is the whole photo's token, the others are attended from blocks.

        a[i,j] = softmax over j of sharpness f[i,j], for every feature by itself
        t[i] = p[i] / |p[i]|, where p[i] = sum_j a[i,j] f[i,j]
        u[i] = z[i] / |z[i]|, where z[i] = (t[i] - mean[i]) A[i], and the columns of A[i] are the first principal axes
               of the tokens of the M images, each as long as the variance along it to the power of stretch / 2
        d[i](x, m) = |u[i](x) - u[i](m)|^2 / spread[i]
        y_k = intercept_k + sum_m coefficients[k,m] exp(-gamma D_k(x, m)), where
        D_k = whole d[0] + (1 - whole) sum_i b[k,i] d[i]

    There are no images in it until it is fitted or loaded; loading takes as many as come.
    """

    centres: Tensor
    wholes: Tensor
    coefficients: Tensor
    intercept: Tensor
    spread: Tensor
    backbones: Tensor
    mean: Tensor
    axes: Tensor
    whole_mean: Tensor
    whole_axes: Tensor

    def __init__(
        self, stack: Shape, concat: Shape, n_tasks: int, *, sharpness: float, whole: float, gamma: float
    ) -> None:
        super().__init__()
        self.sharpness, self.whole, self.gamma = sharpness, whole, gamma
        n_backbones, _, n_features = stack
        self.register_buffer("mean", torch.zeros(n_backbones, n_features))
        self.register_buffer("axes", torch.zeros(n_backbones, n_features, 0))
        self.register_buffer("whole_mean", torch.zeros(concat))
        self.register_buffer("whole_axes", torch.zeros(*concat, 0))
        self.register_buffer("centres", torch.zeros(n_backbones, 0, 0))
        self.register_buffer("wholes", torch.zeros(0, 0))
        self.register_buffer("coefficients", torch.zeros(n_tasks, 0))
        self.register_buffer("intercept", torch.zeros(n_tasks))
        self.register_buffer("spread", torch.ones(1 + n_backbones))
        self.register_buffer("backbones", torch.full((n_tasks, n_backbones), 1 / n_backbones))

    def forward(self, *features: Tensor) -> Tensor:
        """(N, B, T, F) and (N, F2) -> (N, K)."""
        places = self.places(*self.tokens(*features))
        kernels = self.kernels(self.distances(*places), self.backbones)
        return (kernels @ self.coefficients.unsqueeze(-1)).squeeze(-1).T + self.intercept

    def attend(self, *features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """The outputs (N, K), and weights of the `blocks` (N, B, T) and of the `backbones` by task (N, K, B), which
        are alike for all images.

        A block's weight is the mean of its features' own, by each feature's part in the token.
        """
        stack, concat = features
        parts = self.tokens(stack, concat)[0].transpose(0, 1).square()  # (N, B, F), which add up to 1
        # A backbone that says nothing at all, whose token is 0, attends evenly.
        parts = torch.where(parts.sum(-1, keepdim=True) > 0, parts, 1 / parts.shape[-1])
        blocks = (self._by_feature(stack) * parts.unsqueeze(2)).sum(-1)
        return self(stack, concat), {"blocks": blocks, "backbones": self.backbones.expand(len(stack), -1, -1)}

    def tokens(self, stack: Tensor, concat: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, F) attended from the blocks and (N, F2) of the whole photo, of length 1."""
        attended = (self._by_feature(stack) * stack).sum(2).transpose(0, 1)
        return functional.normalize(attended, dim=-1), functional.normalize(concat, dim=-1)

    def places(self, tokens: Tensor, wholes: Tensor) -> tuple[Tensor, Tensor]:
        """(B, N, F) and (N, F2) along their P principal axes, (B, N, P) and (N, P2), of length 1."""
        along = (tokens - self.mean.unsqueeze(1)) @ self.axes
        return functional.normalize(along, dim=-1), functional.normalize((wholes - self.whole_mean) @ self.whole_axes)

    def distances(self, places: Tensor, whole_places: Tensor) -> Tensor:
        """To all centres, (1 + B, N, M), the whole photo's first; a distance of 1 is that of any two images."""
        apart = torch.cat([_apart(whole_places[None], self.wholes[None]), _apart(places, self.centres)])
        return apart / self.spread[:, None, None]

    def kernels(self, distances: Tensor, backbones: Tensor) -> Tensor:
        """Of K tasks, (K, N, M), from distances (1 + B, N, M) and weights of the backbones (K, B)."""
        mean = torch.einsum("kb,bnm->knm", backbones, distances[1:])
        return torch.exp(-self.gamma * (self.whole * distances[0] + (1 - self.whole) * mean))

    def _by_feature(self, stack: Tensor) -> Tensor:
        return (self.sharpness * stack).softmax(2)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        take_sizes(self, ("axes", "whole_axes", "centres", "wholes", "coefficients"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *args)


def fit_amtl_plus(model: nn.Module, sample: Sample, options: Options) -> None:
    """Solve for each task's attention to the backbones and its coefficients, from all rows with a label.

    Nothing is chosen: on OASIS all penalties below 0.1 are equally good on inner validation in five parts.
    """
    assert isinstance(model, AMTLPlus)
    n, n_tasks = sample.labels.shape
    model.coefficients = torch.zeros(n_tasks, n)
    with torch.no_grad():
        distances = _compare(model, sample.features, options)
        for task in range(n_tasks):
            known = np.flatnonzero(np.isfinite(sample.labels[:, task]))
            labels = sample.labels[known, task].astype(np.float64)
            among = distances[:, known][:, :, known]
            model.backbones[task] = _attend(model, among, labels, options["temperature"])
            kernel = model.kernels(among, model.backbones[task : task + 1])[0].double().numpy()
            model.intercept[task] = labels.mean()
            model.coefficients[task, known] = _solve(kernel, labels - labels.mean(), options["penalty"])


def _compare(model: AMTLPlus, features: NDArray[np.float32], options: Options) -> Tensor:
    """Take the images as the centres of the model, and their distances from each other, (1 + B, n, n)."""
    n_concat, (n_backbones, n_features) = len(model.whole_mean), model.mean.shape
    parts = [
        model.tokens(some[:, :-n_concat].view(len(some), n_backbones, -1, n_features), some[:, -n_concat:])
        for some in torch.split(torch.from_numpy(features), AT_ONCE)
    ]
    tokens, wholes = torch.cat([tokens for tokens, _ in parts], 1), torch.cat([wholes for _, wholes in parts])
    stretched = [_principal(some, options["components"], options["stretch"]) for some in (wholes, *tokens)]
    (model.whole_mean, model.whole_axes), *others = stretched
    model.mean, model.axes = torch.stack([mean for mean, _ in others]), torch.stack([axes for _, axes in others])
    model.centres, model.wholes = model.places(tokens, wholes)
    model.spread = torch.ones_like(model.spread)
    distances = model.distances(model.centres, model.wholes)
    model.spread = distances.mean((1, 2)).clamp_min(1e-12)
    return distances / model.spread[:, None, None]


def _principal(tokens: Tensor, n_components: int, stretch: float) -> tuple[Tensor, Tensor]:
    """The mean (F,) of tokens (n, F), and their first principal axes as columns (F, P), stretched.

    Where there are fewer images than features, the axes come of the products of images with each other, in a quarter of
    the time of a singular value decomposition. Along an axis on which images do not differ, nothing counts.
    """
    mean = tokens.mean(0)
    away = (tokens - mean).double().numpy()
    n, n_features = away.shape
    values, vectors = np.linalg.eigh(away @ away.T if n < n_features else away.T @ away)
    first = slice(-1, -min(n_components, n - 1, n_features) - 1, -1)
    values, vectors = values[first], vectors[:, first]
    varies = values > n * np.finfo(np.float64).eps * values[0]
    values = np.where(varies, values, 1)
    lengths = np.where(varies, (values / (n - 1)) ** (stretch / 2), 0)
    if n < n_features:  # sums of images, as long as the root of the value
        vectors, lengths = away.T @ vectors, lengths / np.sqrt(values)
    return mean, torch.from_numpy(vectors * lengths).float().contiguous()


def _attend(model: AMTLPlus, distances: Tensor, labels: Matrix, temperature: float) -> Tensor:
    """Softmax over the backbones of how well their kernels are aligned with the labels, (B,)."""
    away = torch.from_numpy(labels - labels.mean()).float()
    kernels = torch.exp(-model.gamma * distances[1:])
    centred = kernels - kernels.mean(1, keepdim=True) - kernels.mean(2, keepdim=True) + kernels.mean((1, 2), True)
    size = centred.square().sum((1, 2)).sqrt() * away.square().sum()
    alignment = (centred @ away) @ away / size.clamp_min(1e-12)
    return (temperature * alignment).softmax(0)


def _solve(kernel: Matrix, labels: Matrix, penalty: float) -> Tensor:
    from sklearn.kernel_ridge import KernelRidge

    solution = KernelRidge(alpha=penalty, kernel="precomputed").fit(kernel, labels)
    return torch.from_numpy(solution.dual_coef_).float()


def _apart(some: Tensor, others: Tensor) -> Tensor:
    """Squared distances, (G, N, F) and (G, M, F) -> (G, N, M)."""
    squares = some.square().sum(-1, keepdim=True) + others.square().sum(-1).unsqueeze(1)
    return torch.baddbmm(squares, some, others.transpose(1, 2), alpha=-2).clamp_min(0)


def _build(shapes: tuple[Shape, ...], target: Target, options: Options) -> AMTLPlus:
    own = {name: options[name] for name in ("sharpness", "whole", "gamma")}
    return AMTLPlus(shapes[0], shapes[1], len(target.tasks), **own)


def _fit_bytes(n_images: int, shapes: tuple[Shape, ...]) -> int:
    """Every image is compared with every other, by the whole photo and each backbone: all distances, those of one task
    and a copy of them, and its kernels, which are centred."""
    n_backbones = shapes[0][0]
    return 4 * (3 * (1 + n_backbones) + 3 * n_backbones) * n_images**2


CHOSEN = "on inner validation of OASIS"
register(
    System(
        name="amtl-plus",
        title="attention over blocks and backbones under a kernel machine, for few photos",
        source="ours, after Ghosal and Kolekar; Shen et al., DiSAN, 2018; Cortes et al., JMLR 2012",
        reads=("stack", "concat"),
        kinds=("regression",),
        options=by_solving(
            sharpness=Option(2.0, f"ours: of the attention over blocks, 0: their mean; {CHOSEN}", low=0),
            whole=Option(0.67, f"ours: the part of the whole photo, the rest is its blocks'; {CHOSEN}", low=0, high=1),
            temperature=Option(30.0, f"ours: of the attention over backbones, 0: all alike; {CHOSEN}", low=0),
            components=Option(256, f"ours: principal axes of the tokens that count, at most; {CHOSEN}", low=1),
            stretch=Option(0.4, f"ours: of the axes, 0: each as the tokens lie along it; {CHOSEN}", low=0),
            gamma=Option(1.0, f"ours: of the Gaussian, at the mean distance of two images; {CHOSEN}", low=0),
            penalty=Option(0.03, f"ours: of kernel ridge; {CHOSEN}", low=1e-4),
        ),
        build=_build,
        fit=fit_amtl_plus,
        least_labels=2,
        fit_bytes=_fit_bytes,
    )
)
