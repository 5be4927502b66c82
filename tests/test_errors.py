from __future__ import annotations

import pickle
from asyncio import CancelledError
from concurrent.futures import ThreadPoolExecutor

import pytest

from tensair_dask import errors


@pytest.mark.parametrize("name", errors.__all__)
def test_every_error_is_in_the_tree_and_survives_the_wire(name):
    kind = getattr(errors, name)
    assert issubclass(kind, errors.TensairError)
    again = pickle.loads(pickle.dumps(kind("what was given")))
    assert type(again) is kind
    assert str(again) == "what was given"


def test_the_builtin_kinds_can_be_caught_too():
    assert issubclass(errors.TensairTimeoutError, TimeoutError)
    assert issubclass(errors.ConfigurationError, ValueError)
    assert issubclass(errors.TrainerClosedError, RuntimeError)


@pytest.mark.parametrize("error", [SystemExit(1), GeneratorExit(), CancelledError()])
def test_what_ends_a_program_or_a_task_is_an_error_like_any_other(error):
    for stand_in in (
        errors.RaisedError.caught(error),
        errors.RaisedError.unless_fit(error),
    ):
        assert type(stand_in) is errors.RaisedError
        assert type(error).__name__ in str(stand_in)
    assert errors.RaisedError.caught(ours := ValueError("no")) is ours


def test_ctrl_c_goes_on_where_it_comes_from_and_there_only():
    pressed = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        errors.RaisedError.caught(pressed)
    with ThreadPoolExecutor(1) as elsewhere:
        stand_in = elsewhere.submit(errors.RaisedError.caught, pressed).result()
    assert type(stand_in) is errors.RaisedError
