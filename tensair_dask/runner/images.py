"""Sets of small labelled images, from scikit-learn or from the user's own files."""

from __future__ import annotations

import gzip
import math
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tensair_dask.errors import ConfigurationError

__all__ = ["DIGITS", "NAMES", "ImageSet", "Images", "digits", "load"]

DIGITS, MNIST, FASHION, CIFAR = "digits", "mnist", "fashion-mnist", "cifar-10"
NAMES = (DIGITS, MNIST, FASHION, CIFAR)

# Images that the model never learns, of the set that has no such part of its own.
HELD_OUT = 0.2

# Where torchvision and the archives put the files, below the folder that one knows.
PLACES = ("", "raw", "MNIST/raw", "FashionMNIST/raw", "cifar-10-batches-bin")
PLACES_OF_PICKLES = ("", "cifar-10-batches-py")

# As they are offered for download, or with the name of the set before it.
_IDX = re.compile(
    r"(?:(?P<set>.+?)[-_.])?(?P<part>train|t10k)-(?P<kind>images|labels)"
    r"[-.]idx[13]-ubyte(?:\.gz)?"
)
_PARTS = [(part, kind) for part in ("train", "t10k") for kind in ("images", "labels")]

_CIFAR_TRAIN = [f"data_batch_{number}.bin" for number in range(1, 6)]
_CIFAR_TEST = "test_batch.bin"
_CIFAR_SHAPE = (3, 32, 32)
_CIFAR_CLASSES = 10


@dataclass(frozen=True)
class Images:
    """Images and their labels.

    Attributes
    ----------
    pixels
        Shape (images, channels, height, width), uint8.
    labels
        Shape (images,), int64, from 0.
    white
        The largest value that a pixel can have.
    """

    pixels: np.ndarray
    labels: np.ndarray
    white: int = 255

    def __len__(self) -> int:
        return len(self.labels)

    def inputs(self, rows: np.ndarray | slice) -> np.ndarray:
        """Some images as a model takes them: float32 in [0, 1]."""
        return self.pixels[rows].astype(np.float32) / np.float32(self.white)

    def part(self, rows: np.ndarray) -> Images:
        """Some images as a set of their own."""
        return Images(self.pixels[rows], self.labels[rows], self.white)


@dataclass(frozen=True)
class ImageSet:
    """Images to learn, and images that are kept to judge the model.

    Attributes
    ----------
    name
        One of `NAMES`.
    learn, held_out
        The two parts.
    classes
        How many labels there are.
    """

    name: str
    learn: Images
    held_out: Images
    classes: int

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of each image."""
        channels, height, width = self.learn.pixels.shape[1:]
        return channels, height, width


def load(folder: str | Path | None = None, name: str | None = None) -> ImageSet:
    """Read the images of a folder, or those that come with scikit-learn.

    Parameters
    ----------
    folder
        Holds MNIST or Fashion-MNIST as the four idx files in which they are offered,
        packed (``.gz``) or not, or the binary version of CIFAR-10; ``~`` is the home
        folder. None for the digits of scikit-learn.
    name
        One of `NAMES`; None to tell from the files.

    Raises
    ------
    ConfigurationError
        If nothing is found, too much, or a file that is not what it should be.

    Notes
    -----
    The files of MNIST and of Fashion-MNIST are called alike. Which they are is known
    from a name before theirs (``fashion-train-images-idx3-ubyte.gz``) or from the
    folders that they lie in; ``name`` is believed where neither says it.
    """
    if name is not None and name not in NAMES:
        raise ConfigurationError(
            f"dataset={name!r} was given; allowed are {', '.join(map(repr, NAMES))}."
        )
    if folder is None:
        if name not in (None, DIGITS):
            raise ConfigurationError(
                f"dataset={name!r} was given without a folder; say where its files "
                "are, for example --data ~/data. Without files there are the "
                f"{DIGITS!r} of scikit-learn."
            )
        return digits()
    if name == DIGITS:
        raise ConfigurationError(
            f"dataset={DIGITS!r} comes with scikit-learn and needs no folder: leave "
            f"out --data {folder}."
        )
    return _chosen(Path(folder).expanduser(), name)()


def digits(seed: int = 0) -> ImageSet:
    """Give the 1,797 digits of scikit-learn, 8 x 8; a fifth of them is held out.

    Parameters
    ----------
    seed
        Of the choice of those held out.

    Raises
    ------
    ConfigurationError
        If scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ConfigurationError(
            "The digits come with scikit-learn, which is not installed. Install it: "
            "pip install 'tensair-dask[demo]'; or give images of your own with --data."
        ) from error
    found = load_digits()
    images = Images(
        found.images[:, None].astype(np.uint8), found.target.astype(np.int64), white=16
    )
    order = np.random.default_rng(seed).permutation(len(images))
    held_out = round(HELD_OUT * len(images))
    return ImageSet(
        DIGITS, images.part(order[held_out:]), images.part(order[:held_out]), classes=10
    )


# ------------------------------------------------------------------ what a folder holds


@dataclass(frozen=True)
class _Found:
    """A set of files, and how it is read.

    Attributes
    ----------
    name
        Of the set.
    sure
        Whether the files say so, or they are called as another set's are.
    read
        Reads it.
    """

    name: str
    sure: bool
    read: Callable[[], ImageSet]


def _chosen(folder: Path, name: str | None) -> Callable[[], ImageSet]:
    if not folder.is_dir():
        what = "is a file" if folder.exists() else "does not exist"
        raise ConfigurationError(f"--data {folder} {what}; give a folder. {_WANTED}")
    found = [*_idx_sets(folder), *_cifar_sets(folder)]
    fitting = [one for one in found if name is None or one.name == name]
    if not fitting and name in (MNIST, FASHION):
        fitting = [one for one in found if one.name == MNIST and not one.sure]
    if len(fitting) == 1:
        one = fitting[0]
        return one.read if name is None else lambda: _named(one.read(), name)
    if fitting and name is None:
        names = ", ".join(sorted({one.name for one in fitting}))
        raise ConfigurationError(
            f"--data {folder} holds more than one set of images: {names}. Say which "
            f"one with --dataset, for example --dataset {fitting[0].name}."
        )
    if fitting:
        raise ConfigurationError(
            f"--data {folder} holds {name} more than once. Give the folder of one."
        )
    if name in (None, CIFAR) and _has_pickles(folder):
        raise ConfigurationError(
            f"--data {folder} holds the Python version of CIFAR-10. Its files are "
            "pickles, which can do anything to whoever opens them, and are not read. "
            "Get the binary version (cifar-10-binary.tar.gz, from the same page), "
            "unpack it and give its folder."
        )
    wanted = "sets of images" if name is None else name
    there = ", ".join(sorted({one.name for one in found})) or "no images"
    raise ConfigurationError(
        f"--data {folder} was searched for {wanted}, and holds {there}. {_WANTED}"
    )


_WANTED = (
    "It should hold MNIST or Fashion-MNIST as four files (train-images-idx3-ubyte, "
    "train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte; a name "
    "before it and .gz behind it are allowed), or the binary version of CIFAR-10, "
    "unpacked (data_batch_1.bin to data_batch_5.bin, test_batch.bin)."
)


def _named(images: ImageSet, name: str) -> ImageSet:
    return ImageSet(name, images.learn, images.held_out, images.classes)


def _idx_sets(folder: Path) -> Iterator[_Found]:
    for place in _places(folder, PLACES):
        sets: dict[str, dict[tuple[str, str], Path]] = {}
        for path in sorted(place.iterdir()):
            if match := _IDX.fullmatch(path.name):
                files = sets.setdefault(match["set"] or "", {})
                # Unpacked comes first in order, and is read faster.
                files.setdefault((match["part"], match["kind"]), path)
        for prefix, files in sets.items():
            yield _idx_set(place, prefix, files)


def _idx_set(place: Path, prefix: str, files: dict[tuple[str, str], Path]) -> _Found:
    said = f"{prefix}/{'/'.join(place.resolve().parts[-3:])}".lower()
    name = FASHION if "fashion" in said else MNIST

    def read() -> ImageSet:
        if missing := [key for key in _PARTS if key not in files]:
            names = ", ".join(f"{part}-{kind}" for part, kind in missing)
            raise ConfigurationError(
                f"Of the four files of {name} in {place} there is no {names}. {_WANTED}"
            )
        learn = _idx_images(files["train", "images"], files["train", "labels"])
        held_out = _idx_images(files["t10k", "images"], files["t10k", "labels"])
        if learn.pixels.shape[1:] != held_out.pixels.shape[1:]:
            raise ConfigurationError(
                f"In {place} the images to learn have the shape "
                f"{learn.pixels.shape[1:]} and those to test with "
                f"{held_out.pixels.shape[1:]}; they are not of one set."
            )
        classes = 1 + int(max(learn.labels.max(), held_out.labels.max()))
        return ImageSet(name, learn, held_out, classes)

    return _Found(name, "fashion" in said or "mnist" in said, read)


def _cifar_sets(folder: Path) -> Iterator[_Found]:
    for place in _places(folder, PLACES):
        if not (place / _CIFAR_TRAIN[0]).is_file():
            continue

        def read(place: Path = place) -> ImageSet:
            learn = [_cifar_images(place / name) for name in _CIFAR_TRAIN]
            return ImageSet(
                CIFAR,
                Images(
                    np.concatenate([part.pixels for part in learn]),
                    np.concatenate([part.labels for part in learn]),
                ),
                _cifar_images(place / _CIFAR_TEST),
                _CIFAR_CLASSES,
            )

        yield _Found(CIFAR, True, read)


def _has_pickles(folder: Path) -> bool:
    return any(
        (place / "data_batch_1").is_file()
        for place in _places(folder, PLACES_OF_PICKLES)
    )


def _places(folder: Path, names: Sequence[str]) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_dir()]


# ----------------------------------------------------------------------------- formats


def _idx_images(images: Path, labels: Path) -> Images:
    pixels, numbers = _read_idx(images, axes=3), _read_idx(labels, axes=1)
    if len(pixels) != len(numbers) or not len(pixels):
        raise ConfigurationError(
            f"{images} holds {len(pixels):,} images and {labels} {len(numbers):,} "
            "labels; there must be one label for each image, and one image at least."
        )
    return Images(pixels[:, None], numbers.astype(np.int64))


def _read_idx(path: Path, axes: int) -> np.ndarray:
    """Read an idx file: 0, 0, a type, the number of axes, the length of each, data."""
    data = _read(path)
    start = 4 + 4 * axes
    if len(data) < start or data[:4] != bytes([0, 0, 8, axes]):
        raise ConfigurationError(
            f"{path} does not begin as an idx file of bytes with {axes} axes does: "
            f"{data[:4].hex(' ')} in place of 00 00 08 {axes:02x}. Get it again."
        )
    shape = tuple(np.frombuffer(data, ">u4", axes, offset=4).tolist())
    if len(data) - start != math.prod(shape):
        raise ConfigurationError(
            f"{path} should hold {' x '.join(map(str, shape))} bytes and holds "
            f"{len(data) - start:,}: it is cut short, or damaged. Get it again."
        )
    return np.frombuffer(data, np.uint8, offset=start).reshape(shape)


def _cifar_images(path: Path) -> Images:
    """Read records of a label and the pixels, one channel after the other."""
    data = _read(path)
    size = 1 + math.prod(_CIFAR_SHAPE)
    if not data or len(data) % size:
        raise ConfigurationError(
            f"{path} holds {len(data):,} bytes, which is not a number of images of "
            f"{size:,} bytes: it is cut short, or not of the binary version of "
            "CIFAR-10. Get it again."
        )
    records = np.frombuffer(data, np.uint8).reshape(-1, size)
    labels = records[:, 0].astype(np.int64)
    if labels.max() >= _CIFAR_CLASSES:
        raise ConfigurationError(
            f"{path} holds the label {labels.max()}; those of CIFAR-10 go from 0 to "
            f"{_CIFAR_CLASSES - 1}. CIFAR-100 has a format of its own, which is not "
            "read."
        )
    return Images(records[:, 1:].reshape(-1, *_CIFAR_SHAPE), labels)


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or error
        raise ConfigurationError(
            f"{path} cannot be read: {reason}. Get it again, or give another folder."
        ) from error
