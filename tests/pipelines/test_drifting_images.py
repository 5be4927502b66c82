"""Images whose labels are swapped: stream, model, and real runs that notice it."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from distributed.utils_test import gen_cluster, gen_test
from pictures import write_cifar, write_idx
from streamz import Stream

from tensair_dask.adaptation import Convergence
from tensair_dask.cli import tensair
from tensair_dask.drift.run_record import Detections, Record
from tensair_dask.errors import ConfigurationError
from tensair_dask.runner.images import Images, digits

pytest.importorskip("sklearn", reason="needs the digits of scikit-learn")

drifting = importlib.import_module("tensair_dask.pipelines.drifting_images")
SwappedLabels, ImageModel = drifting.SwappedLabels, drifting.ImageModel


def numbered(count: int = 50, classes: int = 10) -> Images:
    """Images that show their number, of all classes in turn."""
    numbers = np.arange(count, dtype=np.uint8)
    pixels = np.broadcast_to(numbers[:, None, None, None], (count, 1, 8, 8))
    return Images(pixels, np.arange(count) % classes)


def swapped(**overrides):
    arguments = {"swaps": 3, "every": 10, "batch_size": 16}
    return SwappedLabels(numbered(), 10, **{**arguments, **overrides})


def truth_of(x: np.ndarray) -> np.ndarray:
    """What is on the images."""
    return np.rint(x[:, 0, 0, 0] * 255).astype(int) % 10


# -------------------------------------------------------------------------- the stream


def test_labels_are_right_but_for_the_pairs_that_are_swapped():
    stream = swapped()
    assert [swap.sign for swap in stream.swaps] == ["3 ↔ 7", "2 ↔ 8", "5 ↔ 1"]
    assert [swap.place for swap in stream.swaps] == [10, 20, 30]
    batches = list(stream.batches())
    assert len(batches) == len(stream) == 40
    other = dict(enumerate(range(10)))
    for index, (x, y) in enumerate(batches):
        assert x.shape == (16, 1, 8, 8)
        assert x.dtype == np.float32
        if index == 10:
            other |= {3: 7, 7: 3}
        if index == 20:
            other |= {2: 8, 8: 2}
        if index == 30:
            other |= {5: 1, 1: 5}
        assert y.tolist() == [other[each] for each in truth_of(x)]


def test_a_label_may_be_swapped_twice():
    # The second and the fifth pair share the 2.
    stream = swapped(swaps=5)
    assert [swap[1:] for swap in stream.swaps[-2:]] == [(0, 9), (4, 2)]
    # Images of an 8 have been called 2 since the second swap, and are a 4 now.
    assert stream.labels(np.arange(10), 50).tolist() == [9, 5, 8, 7, 2, 1, 6, 3, 4, 0]


def test_the_seed_makes_the_stream():
    def drawn(seed):
        stream = swapped(swaps=9, seed=seed)
        return stream.swaps, [x.tobytes() for x, _ in stream.batches()]

    assert drawn(1) == drawn(1)
    swaps, images = drawn(2)
    assert images != drawn(1)[1]
    assert swaps[:5] == drawn(1)[0][:5]
    assert swaps[5:] != drawn(1)[0][5:]
    assert all(swap.one != swap.other for swap in swaps)


def test_pairs_that_do_not_exist_are_left_out():
    stream = SwappedLabels(numbered(classes=4), 4, swaps=6, every=2)
    assert len(stream.swaps) == 6
    assert max(max(swap.one, swap.other) for swap in stream.swaps) < 4


def test_a_limit_ends_the_stream_within_a_mini_batch():
    stream = swapped(limit=15 * 16 + 3)
    sizes = [len(y) for _, y in stream.batches()]
    assert sizes == [16] * 15 + [3]
    assert [swap.place for swap in stream.swaps] == [10]
    assert stream.records == 243


def test_only_what_was_emitted_counts():
    stream = swapped()
    batches = stream.batches()
    for _ in range(10):
        next(batches)
    assert stream.changes() == {}
    next(batches)
    next(batches)
    assert stream.changes() == {10: "3 ↔ 7"}
    assert stream.emitted == 11


def test_baselines_are_those_of_a_loop_over_the_images():
    stream = swapped()
    right = dict.fromkeys(stream.baselines(), 0)
    counts, last, total = np.zeros(10, int), -1, 0
    for x, y in stream.batches():
        favourite = counts.argmax()
        for image, label in zip(truth_of(x), y, strict=True):
            right["first labels, never updated"] += image == label
            right["majority"] += label == favourite
            right["last label"] += label == last
            counts[label] += 1
            last = label
            total += 1
    expected = {name: value / total for name, value in right.items()}
    assert stream.baselines() == pytest.approx(expected)
    assert swapped().baselines() == dict.fromkeys(right, 0)


def test_what_is_unchanged_falls_by_a_fifth_with_each_swap():
    shares = swapped().unchanged()
    assert len(shares) == 40
    assert shares[::10].tolist() == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_streams_that_make_no_sense_are_refused():
    with pytest.raises(ConfigurationError, match="two labels"):
        SwappedLabels(numbered(), 1)
    with pytest.raises(ConfigurationError, match="no images"):
        SwappedLabels(numbered(0), 10)


# --------------------------------------------------------------------------- the model


@pytest.mark.parametrize(
    ("shape", "parameters"),
    [
        # On CIFAR-10: that of TensAIR, layer by layer.
        ((3, 32, 32), 896 + 18_496 + 36_928 + 65_600 + 650),
        ((1, 28, 28), 320 + 18_496 + 36_928 + 36_928 + 650),
        ((1, 8, 8), 320 + 18_496 + 36_928 + 16_448 + 650),
        ((3, 8, 12), None),
        ((1, 5, 6), None),
        ((1, 18, 17), None),
    ],
)
def test_the_model_takes_images_of_each_size(shape, parameters):
    model = ImageModel(shape, 10)
    assert model(torch.rand(4, *shape)).shape == (4, 10)
    if parameters is not None:
        assert sum(each.numel() for each in model.parameters()) == parameters


def test_images_that_are_too_small_are_refused():
    with pytest.raises(ConfigurationError, match="4 x 4"):
        ImageModel((1, 3, 8), 10)


# --------------------------------------------------------------------------- real runs


def small(**overrides):
    """One swap, as soon as the model has learned the digits."""
    return {"swaps": 1, "every": 700, **overrides}


# What is under way when a drift is noticed is still predicted only: by default so much
# that it depends on the machine when learning begins.
FEW_UNDER_WAY = {"tensair.dispatch.max-in-flight": 32}


@gen_cluster(
    client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=120, config=FEW_UNDER_WAY
)
async def test_a_swap_is_detected_and_learned_and_nothing_else(c, s, a, b):
    images = digits()
    stream = SwappedLabels(images.learn, 10, swaps=1, every=1000)
    record = Record(len(stream))
    # Learned by heart before it settles: with fewer epochs there are digits, now and
    # then a whole mini-batch of them, that still surprise the model.
    settled = Convergence(epochs=4)
    source, reports, trainer = drifting.build(c, images, convergence=settled)
    reports.sink(record.add)
    async with trainer:
        for batch in stream.batches():
            await source.emit(batch)
        await trainer.drain()
        scores = await trainer.evaluate(drifting.judged(images, stream))
        detections = Detections(stream.changes(), trainer.drifts["index"])
        events = trainer.events
    frame = record.frame()
    assert len(frame) == 2000
    learned = frame["learned"].to_numpy()
    # Replicas never learn twice alike: in one run of ten a digit that they do not know
    # yet is an alarm. They may learn from it when the labels are swapped, which then
    # surprises nobody, or when the stream ends.
    assert len(detections.false) <= 1
    if learned[1000]:
        assert len(detections.false) == 1
    else:
        assert detections.missed == 0
        assert detections.delay <= 40
    assert set(events["kind"]) >= {"drift", "mode"}
    assert scores["samples"] == len(images.held_out)
    assert scores["accuracy"] > 0.95
    # It learned, settled, only predicted, learned again, and settled again.
    assert learned[:400].all()
    assert not learned[400:1000].all()
    assert learned[1000:1150].any()
    assert not learned[1150:].all()
    assert record.share < 0.9
    assert frame["accuracy"][900:1000].mean() > 0.97
    assert frame["accuracy"][1000:1005].mean() < 0.9
    assert frame["accuracy"][1900:].mean() > 0.97


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)], timeout=60)
async def test_ddm_watches_the_share_of_wrong_answers(c, s, a):
    images = digits()
    stream = SwappedLabels(images.learn, 10, **small(every=20))
    source, reports, trainer = drifting.build(
        c, images, mode="never", detector="ddm", on_drift="reinitialise"
    )
    seen = reports.sink_to_list()
    async with trainer:
        for batch in stream.batches():
            await source.emit(batch)
        await trainer.drain()
    assert len(seen) == 40
    assert not any(report.learned for report in seen)
    assert all(report.error is None for report in seen)


def invoke(*arguments: object):
    return CliRunner().invoke(tensair, ["run", "drifting-images", *map(str, arguments)])


def test_help_describes_the_options():
    done = invoke("--help")
    assert done.exit_code == 0
    for option in ("--data", "--swaps", "--mode", "--detector", "--on-drift"):
        assert option in done.output


def test_wrong_folders_and_options_are_refused_in_one_line(tmp_path):
    done = invoke("--data", tmp_path)
    assert done.exit_code == 1
    assert "train-images-idx3-ubyte" in done.output
    assert "Traceback" not in done.output
    assert invoke("--mode", "sometimes").exit_code == 2
    assert invoke("--on-drift", "panic").exit_code == 2


@pytest.mark.processes
def test_a_run_on_the_command_line(tmp_path):
    line = [sys.executable, "-m", "tensair_dask", "run", "drifting-images"]
    options = ["--json", "--rate", "max", "--swaps", "1", "--every", "600"]
    options += ["--output", str(tmp_path / "plots")]
    options += ["--report", str(tmp_path / "report.html")]
    done = subprocess.run([*line, *options], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "labels 3 and 7 are swapped" in done.stderr
    assert "Traceback" not in done.stderr
    result = json.loads(done.stdout)
    assert result["swaps"][0]["labels"] == "3 ↔ 7"
    assert result["swaps"][0]["index"] == 600
    assert result["detected"] + result["missed"] == 1
    counts = result["mini_batches"]
    assert counts["learned"] + counts["predicted"] == 1200
    assert result["accuracy"]["held_out"] > 0.7
    baselines = result["accuracy"]["baselines"]
    assert baselines["first labels, never updated"] == pytest.approx(0.9, abs=0.02)
    assert baselines["majority"] < 0.2
    assert set(result["files"]) == {"html", "png"}
    for path in result["files"].values():
        assert Path(path).stat().st_size > 10_000
    report = (tmp_path / "report.html").read_text(encoding="utf-8")
    for words in ("Images of digits whose labels are swapped", "Loss and accuracy"):
        assert words in report


@pytest.mark.processes
@pytest.mark.parametrize("write", [write_idx, write_cifar])
def test_images_of_the_user_and_mode_never(tmp_path, write, fonts):
    write(tmp_path / "data")
    options = ["--data", str(tmp_path / "data"), "--mode", "never", "--warm-up", "5"]
    options += ["--every", "10", "--batch-size", "8", "--rate", "max", "--json"]
    options += ["--workers", "1", "--output", str(tmp_path / "plots")]
    done = invoke(*options)
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    assert result["mini_batches"]["learned"] == 5
    assert result["mini_batches"]["predicted"] == 45
    assert result["refused"] == {}


@pytest.mark.parametrize(("begins", "learned"), [(0, 5), (4, 1), (5, 0), (25, 0)])
@gen_test()
async def test_images_behind_the_warm_up_are_not_learned_in_mode_never(begins, learned):
    class Mode:
        async def set_mode(self, mode):
            self.mode = mode

        async def mark(self, text):
            pass

    run, trainer = drifting.ImagesRun(mode="never", warm_up=5), Mode()
    run.continuation.begins = begins
    trainer.mode = run.begins_in(run.mode)
    run.follow(run.mode, SimpleNamespace(trainer=trainer, reports=Stream()), 1000)
    modes = [trainer.mode async for _ in drifting.emitted(run, swapped(), trainer)]
    assert modes[: learned + 1] == ["always"] * learned + ["never"]
    assert set(modes[learned:]) == {"never"}
