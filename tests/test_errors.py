from __future__ import annotations

import pickle

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
