"""The model of all replicas is changed while the stream goes on."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

import dask
import numpy as np
import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import (
    FEATURES,
    RATE,
    class_data,
    classes,
    expected_weight,
    linear,
    linear_data,
    spread,
    train_all,
)

import tensair_dask as ta
from tensair_dask.errors import (
    ConfigurationError,
    NoReplicasError,
    OptimizerError,
    RaisedError,
    TensairTimeoutError,
    TrainerClosedError,
)

one = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)], timeout=60
)
two = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60
)
three = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 3, timeout=60
)


def to_zero(model, optimizers):
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()


@two()
async def test_all_replicas_are_changed(c, s, a, b):
    async with ta.Trainer(c, **classes()) as trainer:
        await train_all(trainer, class_data(50))
        await trainer.apply(to_zero)
        for state in (await trainer.state_dicts()).values():
            assert all(not value.any() for value in state.values())


@two()
async def test_they_agree_afterwards_whatever_is_random(c, s, a, b):
    def shuffle(model, optimizers):
        for module in model:
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()

    async with ta.Trainer(c, **classes()) as trainer:
        await trainer.apply(shuffle)
        assert spread(await trainer.state_dicts()) == 0.0


@three()
@pytest.mark.parametrize("share", ["gradient", "update"])
async def test_nothing_is_lost_or_learned_twice_around_it(c, s, *workers, share):
    # Linear: what is learned after the change adds to it, what was before is gone.
    before, after = linear_data(200), linear_data(150, seed=1)
    async with ta.Trainer(c, **linear(share=share)) as trainer:
        learning = asyncio.gather(*(trainer.train(x, y) for x, y in before))
        while trainer.backlog < 200:
            await asyncio.sleep(0)
        await learning
        await trainer.apply(to_zero)
        await train_all(trainer, after)
        expected = expected_weight(after) - 1.0  # from zeros, not from ones
        for state in (await trainer.state_dicts()).values():
            assert torch.allclose(state["weight"].double(), expected, atol=1e-4)


@two()
async def test_it_may_come_in_the_middle_of_a_busy_stream(c, s, a, b):
    data = linear_data(600)
    async with ta.Trainer(c, **linear()) as trainer:
        learning = asyncio.gather(*(trainer.train(x, y) for x, y in data))
        await trainer.train(*linear_data(1)[0])

        def shift(model, optimizers):
            with torch.no_grad():
                model.weight.add_(5.0)

        await trainer.apply(shift)
        reports = await learning
        await trainer.drain()
        assert all(report.error is None for report in reports)
        # Sums commute: it does not matter where in the stream it came.
        first = linear_data(1)
        expected = expected_weight(data + first) + 5.0
        for state in (await trainer.state_dicts()).values():
            assert torch.allclose(state["weight"].double(), expected, atol=1e-3)


@two()
async def test_a_rate_is_changed_for_own_and_for_peers_gradients(c, s, a, b):
    def halve(model, optimizers):
        optimizers[0].param_groups[0]["lr"] = RATE / 2

    data = linear_data(100)
    async with ta.Trainer(c, **linear()) as trainer:
        await trainer.apply(halve)
        await train_all(trainer, data)
        expected = 1.0 + (expected_weight(data) - 1.0) / 2
        for state in (await trainer.state_dicts()).values():
            assert torch.allclose(state["weight"].double(), expected, atol=1e-4)


@two()
async def test_a_function_that_fails_changes_nothing_and_the_stream_goes_on(c, s, a, b):
    def fail(model, optimizers):
        to_zero(model, optimizers)
        raise ZeroDivisionError("in the middle")

    data = linear_data(100)
    async with ta.Trainer(c, **linear()) as trainer:
        await train_all(trainer, data[:50])
        with pytest.raises(ZeroDivisionError, match="in the middle"):
            await trainer.apply(fail)
        await train_all(trainer, data[50:])
        expected = expected_weight(data)
        for state in (await trainer.state_dicts()).values():
            assert torch.allclose(state["weight"].double(), expected, atol=1e-4)


@two()
async def test_a_function_that_finds_no_file_costs_no_replica(c, s, a, b):
    def read(model, optimizers):
        Path("/no/such/file").read_text()

    async with ta.Trainer(c, **linear()) as trainer:
        with pytest.raises(FileNotFoundError):
            await trainer.apply(read)
        assert len(trainer.session.replicas.alive()) == 2


@one()
async def test_parameters_may_be_other_objects_afterwards(c, s, a):
    def replace(model, optimizers):
        model.weight = torch.nn.Parameter(torch.zeros(3, FEATURES))

    async with ta.Trainer(c, **linear()) as trainer:
        await train_all(trainer, linear_data(5, seed=1))
        await trainer.apply(replace)
        await train_all(trainer, linear_data(10))
        expected = expected_weight(linear_data(10)) - 1.0  # from zeros
        state = await trainer.state_dict()
        assert torch.allclose(state["weight"].double(), expected, atol=1e-4)


@one()
async def test_a_function_that_cannot_travel_is_refused(c, s, a):
    lock = asyncio.Lock()
    async with ta.Trainer(c, **linear()) as trainer:
        generator = (each for each in ())
        with pytest.raises(ConfigurationError, match="The function cannot be sent"):
            await trainer.apply(lambda model, optimizers: (generator, lock))


@one()
async def test_two_changes_come_one_after_the_other(c, s, a):
    def double(model, optimizers):
        with torch.no_grad():
            model.weight.mul_(2)

    async with ta.Trainer(c, **linear()) as trainer:
        await asyncio.gather(*(trainer.apply(double) for _ in range(5)))
        assert (await trainer.state_dict())["weight"].unique().item() == 32


@two()
async def test_predictions_are_answered_meanwhile(c, s, a, b):
    x = np.ones((1, FEATURES), "float32")
    async with ta.Trainer(c, **linear()) as trainer:
        asking = [trainer.apply(to_zero)]
        asking += [trainer.predict(x) for _ in range(20)]
        _, *answers = await asyncio.gather(*asking)
        assert {float(answer[0, 0]) for answer in answers} <= {float(FEATURES), 0.0}


@two()
async def test_a_replica_that_is_lost_meanwhile_does_not_stop_it(c, s, a, b):
    async with ta.Trainer(c, **linear()) as trainer:
        await train_all(trainer, linear_data(20))
        _, lost = trainer.session.replicas.handles
        changing = asyncio.ensure_future(trainer.apply(to_zero))
        workers = {a.address: a, b.address: b}
        await workers[lost.place.address].close(reason="test")
        await changing
        await train_all(trainer, linear_data(20))
        assert len(await trainer.state_dicts()) == 1


@two(config={"distributed.comm.timeouts.connect": "500ms"})
async def test_the_peer_goes_on_if_the_replica_that_was_changed_first_is_lost(
    c, s, a, b
):
    workers = {a.address: a, b.address: b}
    async with ta.Trainer(c, **linear()) as trainer:
        interventions = trainer.session.barrier
        copy = interventions.copy

        async def lose_the_source(source, others):
            await workers[source.place.address].close(reason="test")
            return await copy(source, others)

        interventions.copy = lose_the_source
        await trainer.apply(to_zero)
        (state,) = (await trainer.state_dicts()).values()
        assert not state["weight"].any()
        assert trainer.session.replicas.alive()


def at_the_copy(trainer) -> asyncio.Event:
    """Set when a model is about to be copied; the copy then takes a while."""
    interventions = trainer.session.barrier
    copy, reached = interventions.copy, asyncio.Event()

    async def slowly(source, others):
        reached.set()
        for _ in range(10):
            await asyncio.sleep(0)
        return await copy(source, others)

    interventions.copy = slowly
    return reached


@two()
async def test_a_change_that_is_cancelled_leaves_no_replica_behind(c, s, a, b):
    before, after = linear_data(20), linear_data(20, seed=1)
    async with ta.Trainer(c, **linear()) as trainer:
        await train_all(trainer, before)
        reached = at_the_copy(trainer)
        changing = asyncio.ensure_future(trainer.apply(to_zero))
        await reached.wait()
        changing.cancel()
        await asyncio.wait([changing])
        assert changing.cancelled()
        await train_all(trainer, after)
        for state in (await trainer.state_dicts()).values():
            expected = expected_weight(after) - 1.0
            assert torch.allclose(state["weight"].double(), expected, atol=1e-4)


@one()
async def test_what_is_cancelled_before_it_begins_is_not_done(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        async with trainer.session.barrier.alone:
            changing = asyncio.ensure_future(trainer.apply(to_zero))
            await asyncio.sleep(0)
            changing.cancel()
            await asyncio.wait([changing])
        await train_all(trainer, linear_data(5))
        assert (await trainer.state_dict())["weight"].any()


@two()
async def test_closing_ends_what_is_being_done(c, s, a, b):
    async with ta.Trainer(c, **linear()) as trainer:
        reached = at_the_copy(trainer)
        changing = asyncio.ensure_future(trainer.apply(to_zero))
        await reached.wait()
        await trainer.close()
        assert not trainer.session.barrier._doing
        with pytest.raises(TrainerClosedError):
            await changing


@two()
@pytest.mark.parametrize("method", ["change", "adopt"])
async def test_a_replica_that_may_change_at_any_later_moment_is_given_up(
    c, s, a, b, method
):
    async with ta.Trainer(c, **linear()) as trainer:
        await train_all(trainer, linear_data(20))
        answer, late = asyncio.Event(), set()
        for handle in trainer.session.replicas.handles:

            async def hang(function, *args, handle=handle, call=handle.call):
                if function == method:
                    late.add(handle)
                    await answer.wait()
                return await call(function, *args)

            handle.call = hang
        with dask.config.set({"tensair.timeouts.request": "50ms"}):
            if method == "change":
                with pytest.raises(TensairTimeoutError, match="change"):
                    await trainer.apply(to_zero)
            else:
                await trainer.apply(to_zero)
        (hung,) = late
        (other,) = trainer.session.replicas.alive()
        assert other is not hung
        changed = not (await trainer.state_dict())["weight"].any()
        assert changed == (method == "adopt")
        answer.set()


@one()
async def test_without_a_replica_it_says_so(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        await a.close(reason="test")
        with pytest.raises(NoReplicasError):
            await trainer.apply(to_zero)


@one()
async def test_after_the_end_it_says_so(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        pass
    with pytest.raises(TrainerClosedError):
        await trainer.apply(to_zero)


@one()
async def test_a_step_that_takes_too_long_ends_the_wait(c, s, a):
    async with ta.Trainer(c, **linear()) as trainer:
        dispatcher = trainer.session.dispatcher
        (lane,) = dispatcher.lanes
        learn, permit = lane.learn, asyncio.Event()

        async def slowly(block):
            await permit.wait()
            return await learn(block)

        lane.learn = slowly
        learning = asyncio.ensure_future(trainer.train(*linear_data(1)[0]))
        while not lane.sent:
            await asyncio.sleep(0.001)
        with (
            dask.config.set({"tensair.timeouts.drain": "10ms"}),
            pytest.raises(TensairTimeoutError, match="1 mini-batches at the replicas"),
        ):
            await trainer.apply(to_zero)
        permit.set()
        assert (await learning).error is None


@pytest.mark.parametrize(
    "error", [SystemExit(1), KeyboardInterrupt(), GeneratorExit(), StopIteration()]
)
def test_a_function_that_would_end_the_worker_raises_and_changes_nothing(error):
    @two()
    async def run(c, s, a, b):
        def fails(model, optimizers):
            to_zero(model, optimizers)
            raise error

        async with ta.Trainer(c, **classes()) as trainer:
            before = await trainer.state_dict()
            with pytest.raises(RaisedError, match=type(error).__name__):
                await trainer.apply(fails)
            after = await trainer.state_dict()
            assert all(torch.equal(before[name], after[name]) for name in before)
            assert len(trainer.session.replicas.alive()) == 2
            await train_all(trainer, class_data(10))

    run()


# ---- what the function returns ------------------------------------------------------

ANSWERS = {
    "number": (lambda model, _: model.weight.sum().item(), 3.0 * FEATURES),
    "nothing": (lambda model, _: None, None),
    "tuple": (lambda model, _: (1, "a", [True, None]), (1, "a", [True, None])),
    "settings": (lambda _, given: {"lr": given[0].param_groups[0]["lr"]}, {"lr": RATE}),
    "tensor": (lambda model, _: model.weight, np.ones((3, FEATURES), "float32")),
    "array": (lambda model, _: {"w": np.arange(3)}, {"w": np.arange(3)}),
    "bfloat16": (lambda model, _: torch.ones(2).bfloat16(), np.ones(2, "float32")),
    "the model": (lambda model, _: model.train(), None),
    "the optimizer": (lambda _, given: given[0], None),
}


@two()
@pytest.mark.parametrize("kind", ANSWERS)
async def test_apply_gives_what_the_function_returns(c, s, a, b, kind):
    function, expected = ANSWERS[kind]
    async with ta.Trainer(c, **linear()) as trainer:
        answer = await trainer.apply(function)
        assert type(answer) is type(expected)
        np.testing.assert_equal(answer, expected)
        assert not [text for text in trainer.events.text if "apply gives" in text]


@two()
async def test_it_does_so_where_the_structure_is_changed(c, s, a, b):
    def freeze(model, optimizers):
        model[0].requires_grad_(False)
        return [name for name, each in model.named_parameters() if each.requires_grad]

    async with ta.Trainer(c, **classes()) as trainer:
        names = await trainer.apply(freeze)
        assert names
        assert not any(name.startswith("0.") for name in names)


@two()
@pytest.mark.parametrize(
    ("function", "named"),
    [
        (lambda model, _: {1, 2}, "set"),
        (lambda model, _: {"f": print}, "dict"),
        (lambda model, _: torch.eye(2).to_sparse(), "sparse"),
        (lambda model, _: torch.zeros(17 * 2**20), "68 MiB"),
    ],
)
async def test_what_it_cannot_give_is_said_once(c, s, a, b, function, named):
    async with ta.Trainer(c, **linear()) as trainer:
        assert await trainer.apply(function) is None
        assert await trainer.apply(function) is None
        (said,) = [text for text in trainer.events.text if "apply gives None" in text]
        assert named in said


@two()
@pytest.mark.parametrize("several", [False, True])
async def test_an_optimizer_that_is_returned_is_refused(c, s, a, b, several):
    def adam(model, optimizers):
        made = torch.optim.Adam(model.parameters())
        return [made] if several else made

    async with ta.Trainer(c, **linear()) as trainer:
        with pytest.raises(OptimizerError, match=r"\(Adam\).*of SGD.*param_groups"):
            await trainer.apply(adam)
        assert (await trainer.train(*linear_data(1)[0])).learned


@two()
async def test_what_is_returned_stays_as_it_was_when_it_was_returned(c, s, a, b):
    async with ta.Trainer(c, **linear()) as trainer:
        answer = await trainer.apply(lambda model, _: model.weight)
        await train_all(trainer, linear_data(20))
        assert (answer == 1.0).all()
        answer += 1.0  # it is one's own
