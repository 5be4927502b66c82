from __future__ import annotations

import functools

import pytest
import torch
from distributed.utils_test import gen_cluster
from helpers import (
    carried,
    class_data,
    classes,
    expected_weight,
    linear,
    linear_data,
    spread,
    train_all,
)
from messages import message

import tensair_dask as ta
from tensair_dask.errors import ConfigurationError
from tensair_dask.exchange.compression import COMPRESSIONS, make_compressor
from tensair_dask.exchange.gradients import Gradients
from tensair_dask.exchange.rows import Rows

LOSSY = [name for name in COMPRESSIONS if name != "none"]
lossy = pytest.mark.parametrize("name", LOSSY)
cluster = functools.partial(
    gen_cluster, client=True, nthreads=[("127.0.0.1", 1)] * 3, timeout=60
)


def gradients(seed: int, size: int = 3000) -> Gradients:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randperm(50, generator=generator)[:20].sort().values
    return Gradients(
        [torch.randn(size, generator=generator)],
        None,
        {0: Rows(ids, torch.randn(20, 8, generator=generator))},
    )


def dense(total: Gradients, rows: int = 50, width: int = 8) -> torch.Tensor:
    table = torch.zeros(rows, width)
    for part in total.rows.values():
        table = part.gradient(table).to_dense()
    return torch.cat([*total.buffers, table.flatten()])


@lossy
def test_what_arrives_is_what_the_sender_thinks_has_arrived(name):
    encodings = make_compressor(name).compress(gradients(0))
    again = carried(message(1, 1, 0.0, content=(encodings,)))
    assert torch.equal(dense(again.gradients), dense(encodings.decode()))


@pytest.mark.parametrize(
    ("name", "share"), [("bfloat16", 0.51), ("float16", 0.51), ("int8", 0.27)]
)
def test_messages_get_smaller(name, share):
    plain = Gradients([torch.randn(100_000)])
    assert make_compressor(name).compress(plain).nbytes <= share * plain.nbytes
    wide = Gradients([], None, {0: Rows(torch.arange(100), torch.randn(100, 300))})
    encodings = make_compressor(name).compress(wide)
    assert encodings.nbytes <= (share + 0.01) * wide.nbytes
    assert encodings.decoded_nbytes == wide.nbytes


@pytest.mark.parametrize(
    ("name", "error"), [("bfloat16", 2e-2), ("float16", 2e-3), ("int8", 3e-2)]
)
def test_one_message_is_near_to_the_truth(name, error):
    truth = gradients(0)
    arrived = make_compressor(name).compress(truth).decode()
    assert (dense(arrived) - dense(truth)).abs().max() < error


@lossy
def test_what_was_left_out_comes_later_and_nothing_is_lost(name):
    compressor = make_compressor(name)
    sent = truth = torch.zeros(3000 + 400)
    for seed in range(50):
        fresh = gradients(seed)
        truth = truth + dense(fresh)
        sent = sent + dense(compressor.compress(fresh).decode())
    # As near after fifty messages as after one: errors do not add up.
    assert (sent - truth).abs().max() < 0.05
    rest = compressor.remainder(Gradients([torch.zeros(3000)]))
    assert torch.allclose(sent + dense(rest), truth, atol=1e-4)


@lossy
def test_a_message_does_not_grow_by_the_rows_of_earlier_ones(name):
    compressor = make_compressor(name)
    for seed in range(10):
        fresh = gradients(seed)
        sent = compressor.compress(fresh)
        assert torch.equal(sent.rows[0][0], fresh.rows[0].ids)


@lossy
def test_messages_that_wait_are_merged_without_rounding_again(name):
    compressor = make_compressor(name)
    waiting = None
    total = torch.zeros(3000 + 400)
    for step in range(1, 8):
        content = (compressor.compress(gradients(step)),)
        total = total + dense(content[0].decode())
        one = message(step, step, 0.0, content=content)
        waiting = one if waiting is None else waiting.merge(one)
        arrived = carried(waiting)
        assert torch.allclose(dense(arrived.gradients), total, atol=1e-5)
        assert waiting.nbytes <= 1.2 * (4 * 3000 + 50 * (4 * 8 + 4))


@lossy
def test_extremes_survive(name):
    odd = Gradients([torch.tensor([0.0, 1e-30, -1e6, 1e6])], None, {})
    arrived = make_compressor(name).compress(odd).decode().buffers[0]
    assert torch.isfinite(arrived).all()
    assert arrived[0] == 0


@lossy
def test_no_rows_and_no_dense_parameters_are_allowed(name):
    compressor = make_compressor(name)
    empty = Rows(torch.zeros(0, dtype=torch.long), torch.zeros(0, 4))
    compressor.compress(Gradients([], None, {0: empty}))
    some = Rows(torch.tensor([3]), torch.ones(1, 4))
    compressor.compress(Gradients([], None, {0: some}))
    assert (
        len(compressor.compress(Gradients([], None, {0: empty})).decode().rows[0]) == 0
    )


def test_an_unknown_compression_says_which_there_are():
    with pytest.raises(ConfigurationError, match="'none', 'bfloat16'"):
        make_compressor("zip")


@lossy
def test_the_invariant_holds_after_a_drain(name):
    @cluster()
    async def run(c, s, *_):
        data = linear_data(200)
        async with ta.Trainer(c, **linear(compression=name)) as trainer:
            for half in (data[:100], data[100:]):
                await train_all(trainer, half)
            states = await trainer.state_dicts()
            assert {info.version for info in trainer.replicas} == {200}
        for state in states.values():
            assert torch.allclose(
                state["weight"].double(), expected_weight(data), atol=3e-4
            )

    run()


@lossy
def test_compressed_updates_make_replicas_agree(name):
    @cluster()
    async def run(c, s, *_):
        arguments = classes(
            optimizer=functools.partial(torch.optim.Adam, lr=0.01),
            share="update",
            compression=name,
        )
        async with ta.Trainer(c, **arguments) as trainer:
            reports = await train_all(trainer, class_data(200))
            assert spread(await trainer.state_dicts()) < 1e-4
            assert reports[-1].loss < reports[0].loss

    run()
