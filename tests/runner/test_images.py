"""Sets of images are read from tiny files in their published formats."""

from __future__ import annotations

import gzip
import importlib.util
from pathlib import Path

import numpy as np
import pytest
from pictures import idx, write_cifar, write_idx

from tensair_dask.errors import ConfigurationError
from tensair_dask.runner import images

# MNIST and Fashion-MNIST, where they lie beside the project.
REAL = Path(__file__).parents[3] / "shared" / "data" / "images"


def refused(*arguments: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        images.load(*arguments)
    return str(caught.value)


# ----------------------------------------------------------------------------- digits


def test_digits_need_no_files_and_hold_a_fifth_out():
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    digits = images.load()
    assert (digits.name, digits.shape, digits.classes) == ("digits", (1, 8, 8), 10)
    assert (len(digits.learn), len(digits.held_out)) == (1438, 359)
    learned = {each.tobytes() for each in digits.learn.pixels}
    assert not any(each.tobytes() in learned for each in digits.held_out.pixels)
    again = images.load(None, "digits")
    assert (again.held_out.labels == digits.held_out.labels).all()
    assert np.bincount(digits.held_out.labels).min() > 20


def test_inputs_are_floats_from_0_to_1():
    pytest.importorskip("sklearn", reason="needs scikit-learn")
    inputs = images.load().learn.inputs(slice(0, 100))
    assert inputs.dtype == np.float32
    assert inputs.shape == (100, 1, 8, 8)
    assert (inputs.min(), inputs.max()) == (0, 1)


# -------------------------------------------------------------------------- idx files


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize(
    ("place", "prefix", "dot", "name"),
    [
        ("", "", "-", "mnist"),
        ("", "", ".", "mnist"),
        ("", "fashion-", "-", "fashion-mnist"),
        ("FashionMNIST/raw", "", "-", "fashion-mnist"),
        ("MNIST/raw", "", "-", "mnist"),
    ],
)
def test_idx_files_are_distinguished_by_their_names(
    tmp_path, suffix, place, prefix, dot, name
):
    write_idx(tmp_path / place, prefix, suffix, dot)
    found = images.load(tmp_path)
    assert (found.name, found.shape, found.classes) == (name, (1, 5, 6), 4)
    for part, count in ((found.learn, 20), (found.held_out, 10)):
        assert (part.pixels == np.arange(count)[:, None, None, None]).all()
        assert part.labels.tolist() == [number % 4 for number in range(count)]


def test_a_folder_may_be_text_and_lie_at_home(tmp_path, monkeypatch):
    write_idx(tmp_path / "sets")
    monkeypatch.setenv("HOME", str(tmp_path))
    for folder in (str(tmp_path / "sets"), "~/sets", Path("~/sets")):
        assert images.load(folder, "mnist").name == "mnist"
    assert "/sets/nowhere does not exist" in refused("~/sets/nowhere")


def test_two_sets_in_a_folder_ask_which_one(tmp_path):
    write_idx(tmp_path, "fashion-")
    write_idx(tmp_path, "mnist-")
    assert "--dataset fashion-mnist" in refused(tmp_path)
    for name in ("mnist", "fashion-mnist"):
        assert images.load(tmp_path, name).name == name


def test_a_name_is_believed_where_the_files_leave_it_open(tmp_path):
    folder = tmp_path / "data"
    write_idx(folder)
    assert images.load(folder, "fashion-mnist").name == "fashion-mnist"
    write_idx(tmp_path / "other", "mnist-")
    assert "holds mnist" in refused(tmp_path / "other", "fashion-mnist")


def test_files_that_are_not_what_they_should_be_are_named(tmp_path):
    write_idx(tmp_path)
    labels = tmp_path / "train-labels-idx1-ubyte"
    good = labels.read_bytes()
    labels.write_bytes(good[:-1])
    assert "should hold 20 bytes and holds 19" in refused(tmp_path)
    labels.write_bytes(b"<html>not found</html>")
    assert "3c 68 74 6d in place of 00 00 08 01" in refused(tmp_path)
    labels.write_bytes(idx(np.zeros(19)))
    assert "one label for each image" in refused(tmp_path)
    labels.unlink()
    assert "there is no train-labels" in refused(tmp_path)
    labels.with_name(f"{labels.name}.gz").write_bytes(gzip.compress(good)[:-9])
    assert "train-labels-idx1-ubyte.gz cannot be read" in refused(tmp_path)


@pytest.mark.skipif(not REAL.is_dir(), reason="needs ../shared/data/images")
@pytest.mark.parametrize("name", ["mnist", "fashion-mnist"])
def test_the_real_files(name):
    found = images.load(REAL, name)
    assert (found.shape, found.classes) == ((1, 28, 28), 10)
    assert (len(found.learn), len(found.held_out)) == (60_000, 10_000)
    assert np.bincount(found.held_out.labels).sum() == 10_000
    # Published: the mean of MNIST is .1307, that of Fashion-MNIST .2860.
    mean = found.learn.pixels.mean() / 255
    published = {"mnist": 0.1307, "fashion-mnist": 0.2860}[name]
    assert mean == pytest.approx(published, abs=5e-5)


# ------------------------------------------------------------------------------ CIFAR


@pytest.mark.parametrize("place", ["", "cifar-10-batches-bin"])
def test_the_binary_version_of_cifar(tmp_path, place):
    pixels = write_cifar(tmp_path / place)
    found = images.load(tmp_path)
    assert (found.name, found.shape, found.classes) == ("cifar-10", (3, 32, 32), 10)
    assert (found.held_out.pixels == pixels).all()
    assert (found.learn.pixels == np.tile(pixels, (5, 1, 1, 1))).all()
    assert set(found.learn.labels.tolist()) == {9}


def test_pickles_are_not_opened(tmp_path):
    # Whoever unpickled this would make a file.
    made = tmp_path / "made"
    code = f"cos\nsystem\n(S'touch {made}'\ntR."
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    for number in range(1, 6):
        (folder / f"data_batch_{number}").write_text(code)
    for given in (tmp_path, folder):
        reported = refused(given)
        assert "Python version of CIFAR-10" in reported
        assert "cifar-10-binary.tar.gz" in reported
    assert not made.exists()


def test_files_of_cifar_that_are_damaged_are_named(tmp_path):
    write_cifar(tmp_path, label=10)
    assert "label 10" in refused(tmp_path)
    write_cifar(tmp_path)
    (tmp_path / "data_batch_3.bin").write_bytes(b"short")
    assert "data_batch_3.bin holds 5 bytes" in refused(tmp_path)
    write_cifar(tmp_path)
    (tmp_path / "test_batch.bin").unlink()
    assert "test_batch.bin cannot be read" in refused(tmp_path)


# ----------------------------------------------------------------------- wrong folders


def test_a_folder_without_images_says_what_is_wanted(tmp_path):
    reported = refused(tmp_path)
    for word in ("no images", "train-images-idx3-ubyte", "data_batch_1.bin"):
        assert word in reported
    assert "does not exist" in refused(tmp_path / "nothing")
    (tmp_path / "file").touch()
    assert "is a file" in refused(tmp_path / "file")


def test_names_and_folders_that_do_not_fit(tmp_path):
    assert "'digits', 'mnist'" in refused(None, "imagenet")
    assert "say where its files are" in refused(None, "mnist")
    assert "needs no folder" in refused(tmp_path, "digits")


def test_without_scikit_learn_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "sklearn.datasets", None)
    assert "pip install 'tensair-dask[demo]'" in refused()
    assert importlib.util.find_spec("tensair_dask.runner.images") is not None
