"""The error for a name of another library gives our name."""

from __future__ import annotations

import copy
import inspect

import numpy as np
import pytest
from distributed.utils_test import gen_cluster
from helpers import FEATURES, classes
from streamz import Stream

import tensair_dask as ta
import tensair_dask.streams
from tensair_dask import errors
from tensair_dask._common import other_libraries

X = np.zeros((4, FEATURES), "float32")
Y = np.zeros(4, int)


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_methods_of_other_libraries_name_the_right_call(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        for name, right in {
            "fit": "trainer.train(x, y)",
            "partial_fit": "stream.train(trainer)",
            "predict_proba": "trainer.predict(x)",
            "score": "trainer.evaluate(",
            "parameters": "trainer.state_dict()",
            "load_state_dict": "Trainer.restore(",
            "stop": "trainer.close()",
            "histroy": "did you mean 'history'?",
        }.items():
            with pytest.raises(errors.NoSuchMethodError) as caught:
                getattr(trainer, name)
            assert right in str(caught.value)
            assert not hasattr(trainer, name)
        with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
            _ = trainer.nonsense
        with pytest.raises(AttributeError, match=r"^Trainer has no attribute '_x'\.$"):
            _ = trainer._x


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_arguments_of_other_libraries_name_the_right_one(c, s, a):
    for name, right in {
        "epochs": "a stream has no epochs",
        "batch_size": "partition(64",
        "lr": "functools.partial(torch.optim.SGD, lr=0.05)",
        "criterion": "loss=",
        "num_workers": "replicas=",
        "callbacks": "sink(function)",
        "metric": "did you mean 'metrics'?",
    }.items():
        with pytest.raises(errors.CallError) as caught:
            ta.Trainer(c, **classes(), **{name: 3})
        assert f"Trainer has no argument {name!r}" in str(caught.value)
        assert right in str(caught.value)
    with pytest.raises(errors.CallError, match="missing a required argument: 'loss'"):
        ta.Trainer(c, model=X)
    with pytest.raises(errors.CallError, match="has no argument 'epochs'"):
        ta.Trainer.restore("path", c, **classes(), epochs=3)


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_calls_that_lack_or_have_too_much_say_how_they_are_made(c, s, a):
    async with ta.Trainer(c, **classes()) as trainer:
        loader = [(X, Y)]
        with pytest.raises(errors.CallError, match="for x, y in loader"):
            trainer.train(loader)
        with pytest.raises(errors.CallError, match="a stream has no epochs"):
            trainer.train(X, Y, epochs=3)
        with pytest.raises(errors.CallError, match=r"trainer.evaluate\(\[\(x, y\)\]\)"):
            trainer.evaluate(X, Y)
        with pytest.raises(errors.ConfigurationError, match="details="):
            trainer.predict(X, Y)
        source = Stream(asynchronous=True)
        for name in ("train", "predict", "predict_then_train"):
            node = getattr(Stream(asynchronous=True), name)
            with pytest.raises(errors.CallError, match="a stream has no epochs"):
                node(trainer, epochs=3)
            node(trainer, stream_name="mine")
        with pytest.raises(errors.CallError, match="did you mean 'on_error'"):
            source.train(trainer, on_eror="skip")
        assert len(trainer.session.intake.nodes) == 3


def test_a_property_that_fails_says_why_itself():
    class Broken(ta.Trainer):
        def __init__(self):
            pass

        @property
        def status(self):
            raise AttributeError("why it fails")

    with pytest.raises(AttributeError, match="why it fails"):
        _ = Broken().status
    with pytest.raises(errors.NoSuchMethodError):
        _ = copy.copy(Broken()).fit


def test_the_signature_is_still_shown():
    parameters = inspect.signature(ta.Trainer).parameters
    assert {"client", "model", "loss", "optimizer"} <= parameters.keys()
    assert list(inspect.signature(ta.Trainer.train).parameters) == ["self", "x", "y"]


def test_nothing_is_said_to_be_called_otherwise_that_is_there():
    arguments = inspect.signature(ta.Trainer).parameters
    assert not other_libraries.ARGUMENTS.keys() & arguments.keys()
    assert not other_libraries.METHODS.keys() & set(dir(ta.Trainer))
