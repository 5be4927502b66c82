"""The models and the streams that every contender trains: one table, `WORKLOADS`."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

__all__ = ["LEARNING_RATE", "WORKLOADS", "Pool", "Workload", "cnn", "load_pool", "mlp"]

LEARNING_RATE = 0.05
SEED = 0
# Labels that are drawn at random. A pool is cycled many times within a measurement:
# without noise that cannot be learned, the loss of the faster contenders would go to
# nothing, and arithmetic on denormal gradients is slower than any other.
LABEL_NOISE = 0.05

Pool = list[tuple[np.ndarray, np.ndarray]]


def mlp(hidden: int) -> nn.Module:
    """Build the 64-hidden-hidden-10 perceptron."""
    return nn.Sequential(
        nn.Linear(64, hidden),
        nn.ReLU(),
        nn.Linear(hidden, hidden),
        nn.ReLU(),
        nn.Linear(hidden, 10),
    )


def cnn() -> nn.Module:
    """Build the CIFAR-10 network of TensAIR."""
    return nn.Sequential(
        nn.Conv2d(3, 32, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(64, 64, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(1024, 64),
        nn.ReLU(),
        nn.Linear(64, 10),
    )


def _with_label_noise(y: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    noisy = rng.random(y.shape) < LABEL_NOISE
    return np.where(noisy, rng.integers(0, 10, y.shape), y).astype(np.int64)


def _digits(minibatches: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Shuffle scikit-learn's 1,797 digits again and again, a little noise on each."""
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(SEED)
    images, labels = load_digits(return_X_y=True)
    images = ((images - images.mean()) / images.std()).astype(np.float32)
    records = minibatches * batch
    passes = -(-records // len(images))
    order = np.concatenate([rng.permutation(len(images)) for _ in range(passes)])
    order = order[:records]
    x = images[order]
    x += 0.1 * rng.standard_normal(x.shape, dtype=np.float32)
    y = _with_label_noise(labels[order], rng)
    return x.reshape(minibatches, batch, 64), y.reshape(minibatches, batch)


def _prototypes(minibatches: int, batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Draw 3x32x32 images: a smooth prototype per class, buried in noise."""
    rng = np.random.default_rng(SEED)
    coarse = rng.standard_normal((10, 3, 8, 8), dtype=np.float32)
    prototypes = coarse.repeat(4, axis=2).repeat(4, axis=3)
    labels = rng.integers(0, 10, (minibatches, batch))
    x = rng.standard_normal((minibatches, batch, 3, 32, 32), dtype=np.float32)
    for i in range(minibatches):
        x[i] += 0.5 * prototypes[labels[i]]
    return x, _with_label_noise(labels, rng)


@dataclass(frozen=True)
class Workload:
    """One model with its stream."""

    name: str
    model: Callable[[], nn.Module]
    stream: Callable[[int, int], tuple[np.ndarray, np.ndarray]]
    batch: int
    pool: int  # mini-batches generated ahead of time and cycled
    prequential: int  # mini-batches learned for the comparison of accuracies
    says: str

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(p.numel() for p in self.model().parameters())

    def write_pool(self, path: Path) -> None:
        """Generate the stream's mini-batches into an ``.npz`` file."""
        x, y = self.stream(self.pool, self.batch)
        np.savez(path, x=x, y=y)

    def seeded_model(self) -> nn.Module:
        """Build the model with the parameters that all contenders start from."""
        torch.manual_seed(SEED)
        return self.model()


def load_pool(path: Path) -> Pool:
    """Read mini-batches that `Workload.write_pool` wrote, into memory."""
    with np.load(path) as arrays:
        return list(zip(arrays["x"], arrays["y"], strict=True))


_DIGITS = (
    "scikit-learn digits (real data, 64 features, 10 classes), reshuffled each pass,"
    f" noise 0.1 on the features, {LABEL_NOISE:.0%} of the labels random, seeded"
)

WORKLOADS = {
    workload.name: workload
    for workload in (
        Workload(
            name="85k",
            model=functools.partial(mlp, 256),
            stream=_digits,
            batch=64,
            pool=512,
            prequential=3000,
            says=f"64-256-256-10 MLP on {_DIGITS}",
        ),
        Workload(
            name="1.1m",
            model=functools.partial(mlp, 1024),
            stream=_digits,
            batch=64,
            pool=512,
            prequential=1500,
            says=f"64-1024-1024-10 MLP on {_DIGITS}",
        ),
        Workload(
            name="cnn",
            model=cnn,
            stream=_prototypes,
            batch=128,
            pool=200,
            prequential=300,
            says=(
                "CIFAR-10 CNN of TensAIR on synthetic 3x32x32 images: a smooth random"
                " prototype per class (amplitude 0.5) in unit noise,"
                f" {LABEL_NOISE:.0%} of the labels random, seeded"
            ),
        ),
    )
}
