"""Convergence decides when training may end."""

from __future__ import annotations

import math
import pickle

import numpy as np
import pytest

from tensair_dask.adaptation import Convergence
from tensair_dask.errors import CheckpointError, ConfigurationError


def settled_at(convergence: Convergence, losses) -> int | None:
    """After how many mini-batches it says that the loss has converged."""
    for number, loss in enumerate(losses, 1):
        if convergence.update(float(loss)):
            return number
    return None


def test_a_constant_loss_has_converged_when_there_are_enough_epochs():
    assert settled_at(Convergence(epoch=10, epochs=2), [1.0] * 100) == 20
    assert settled_at(Convergence(epoch=10, epochs=4), [1.0] * 100) == 40


def test_a_falling_loss_has_not():
    falling = np.linspace(1.0, 0.0, 2000)  # by 5 per cent in an epoch of 100
    assert settled_at(Convergence(epoch=100), falling) is None


def test_progress_is_measured_by_where_training_began():
    # For ever by 18 per cent of itself in an epoch; by less than 2 of the first one's
    # from the 14th on.
    falling = 0.998 ** np.arange(5000)
    assert settled_at(Convergence(epoch=100), falling) == 1400
    assert settled_at(Convergence(epoch=100), falling[1100:]) == 1400


def test_a_training_that_begins_low_is_measured_by_one_that_began_high():
    falling = 0.998 ** np.arange(5000)
    convergence = Convergence(epoch=100)
    settled_at(convergence, falling)
    convergence.reset()  # as after a false alarm
    assert settled_at(convergence, falling[1400:]) == 200
    convergence.reset()
    assert settled_at(convergence, 10 * falling) == 1400


def test_it_has_when_it_falls_by_less_than_the_factor():
    # By 1 per cent in an epoch of 100.
    slowly = 0.9999 ** np.arange(5000)
    assert settled_at(Convergence(epoch=100, factor=0.02), slowly) == 200
    assert settled_at(Convergence(epoch=100, factor=0.005), slowly) is None


def test_more_epochs_see_slower_progress():
    slowly = np.linspace(1.0, 0.5, 5000)  # by 1 per cent in an epoch of 100
    assert settled_at(Convergence(epoch=100, epochs=2, factor=0.02), slowly) == 200
    assert settled_at(Convergence(epoch=100, epochs=4, factor=0.02), slowly) is None


def test_what_noise_alone_could_do_is_no_progress():
    generator = np.random.default_rng(1)
    moments = [
        settled_at(Convergence(epoch=50, factor=0.0), generator.gamma(4, 0.25, 2000))
        for _ in range(50)
    ]
    assert np.median(moments) == 100
    assert max(moments) <= 400


def test_a_share_does_not_depend_on_the_scale_of_the_loss():
    losses = 1 + np.exp(-np.arange(3000) / 300)
    moments = {
        settled_at(Convergence(epoch=50), losses * scale) for scale in (1e-6, 1, 1e6)
    }
    assert len(moments) == 1
    assert None not in moments


def test_the_absolute_rule_compares_in_units_of_the_loss():
    losses = [30.0] * 10 + [29.8] * 10
    assert settled_at(Convergence(10, 2, factor=0.3, relative=False), losses) == 20
    assert settled_at(Convergence(10, 2, factor=0.1, relative=False), losses) is None


@pytest.mark.parametrize("relative", [True, False])
def test_a_clear_rise_is_no_convergence(relative):
    rising = np.linspace(1, 100, 1000)
    assert settled_at(Convergence(epoch=50, relative=relative), rising) is None


def test_a_rise_by_chance_does_not_hold_it_up():
    generator = np.random.default_rng(5)
    for _ in range(20):
        noise = generator.gamma(4, 0.25, size=(2, 50))
        noise = noise[noise.mean(1).argsort()]  # the second epoch is the higher one
        assert settled_at(Convergence(epoch=50), noise.reshape(-1)) == 100


def test_it_has_risen_only_where_it_is_more_than_chance():
    generator = np.random.default_rng(5)
    for _ in range(100):
        convergence = Convergence()
        settled_at(convergence, generator.gamma(4, 0.125, 2000))
        assert not convergence.rose
    convergence = Convergence(epoch=50)
    assert not convergence.rose
    low, high = generator.gamma(4, 0.125, 50), generator.gamma(4, 0.25, 5000)
    settled_at(convergence, [*low, *high])
    assert convergence.rose


def test_it_knows_the_level():
    convergence = Convergence(epoch=4)
    assert math.isnan(convergence.level)
    settled_at(convergence, [1, 2, 3, 4])
    assert convergence.level == 2.5


def test_after_a_reset_it_begins_afresh():
    convergence = Convergence(epoch=10, epochs=2)
    settled_at(convergence, [1.0] * 19)
    convergence.reset()
    assert settled_at(convergence, [1.0] * 100) == 20


def test_a_pickled_one_goes_on_where_it_was():
    convergence = Convergence(epoch=10, epochs=2)
    settled_at(convergence, [1.0] * 13)
    copy = pickle.loads(pickle.dumps(convergence))
    assert settled_at(copy, [1.0] * 100) == 7


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"epoch": 0}, "epoch=0 is not allowed; give a whole number from 1"),
        ({"epoch": 1.5}, "epoch=1.5"),
        ({"epochs": 1}, "epochs=1 is not allowed; give a whole number from 2"),
        ({"factor": -1}, "factor=-1 is not allowed; give a number from 0"),
        ({"factor": float("nan")}, "factor=nan"),
        ({"factor": "much"}, "factor='much'"),
        ({"factor": True}, "factor=True"),
        ({"factor": 2}, "factor=2 was given, as a share .* relative=False"),
        ({"factor": 1.0}, "from 0 to below 1 is allowed"),
        ({"factor": np.float32(1.5)}, "below 1"),
        ({"epoch": True}, "epoch=True"),
        ({"relative": "absolute"}, "relative='absolute' was given; True is allowed"),
    ],
)
def test_wrong_arguments_are_refused(arguments, words):
    with pytest.raises(ConfigurationError, match=words):
        Convergence(**arguments)


def test_in_units_of_the_loss_a_factor_may_be_large():
    assert Convergence(factor=20, relative=False).factor == 20


def test_numbers_may_be_those_of_numpy():
    convergence = Convergence(np.int64(10), np.int32(3), np.float32(0.5))
    same = Convergence(10, 3, 0.5)
    assert repr(convergence.state_dict()) == repr(same.state_dict())


@pytest.mark.parametrize("place", [0, 5, 10, 37, 60])
def test_a_state_goes_on_where_the_stream_was(place):
    losses = np.random.default_rng(0).normal(1.0, 0.5, 100) + np.linspace(1, 0, 100)
    one, other = Convergence(epoch=10, epochs=3), Convergence(epoch=10, epochs=3)
    for loss in losses[:place]:
        one.update(loss)
    if place == 37:
        one.reset()  # keeps the scale
    state = one.state_dict()
    for loss in losses[place:]:
        other.update(loss)  # it has seen something else
    other.load_state_dict(state)
    assert [one.update(each) for each in losses] == [
        other.update(each) for each in losses
    ]
    assert vars(one) == vars(other)


def test_a_state_of_other_parameters_is_refused():
    state = Convergence(epoch=10, factor=0.1).state_dict()
    with pytest.raises(CheckpointError, match=r"with factor=0.1 \(here 0.02\);"):
        Convergence(epoch=10).load_state_dict(state)
    with pytest.raises(CheckpointError, match="given a state that is none"):
        Convergence().load_state_dict({})
