"""Messages of peers are refused unless they fit this replica to the byte."""

from __future__ import annotations

import asyncio
import copy
import functools
import logging
import math
import random
import tracemalloc

import dask
import pytest
import torch
from distributed.protocol import to_serialize
from distributed.utils_test import async_poll_for, gen_cluster
from helpers import linear, linear_data, train_all
from messages import message
from torch import nn

import tensair_dask as ta
from tensair_dask._common.notices import Notices
from tensair_dask.exchange.arena import Arena
from tensair_dask.exchange.codec import encode
from tensair_dask.exchange.compression import COMPRESSIONS, make_compressor
from tensair_dask.exchange.exchange import Exchange
from tensair_dask.exchange.gate import REASONS, Gate
from tensair_dask.exchange.gradients import Gradients
from tensair_dask.exchange.rows import Rows
from tensair_dask.pubsub import Member, Pub
from tensair_dask.pubsub.inlet import Inlet
from tensair_dask.pubsub.parcel import Parcel
from tensair_dask.pubsub.view import View

SENDER = Member("1", "tcp://127.0.0.1:1", "a", "worker")
TEN_GIGABYTES = 10 * 2**30


class Mixed(nn.Module):
    """Parameters of every kind: two dtypes, two tables."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 300)
        self.narrow = nn.Linear(8, 8, dtype=torch.bfloat16)
        self.words = nn.Embedding(500, 6, sparse=True)
        self.bags = nn.EmbeddingBag(40, 3, sparse=True, dtype=torch.bfloat16)


ARENA = Arena(Mixed())


def gradients(seed: int = 0, rows: int = 20) -> Gradients:
    generator = torch.Generator().manual_seed(seed)
    buffers = [
        torch.randn(size, generator=generator).to(dtype)
        for size, dtype in zip(ARENA.layout.sizes, ARENA.layout.dtypes, strict=True)
    ]
    tables = {
        number: Rows(
            torch.randperm(len(table), generator=generator)[:rows].sort().values,
            torch.randn(rows, table.shape[1], generator=generator).to(table.dtype),
        )
        for number, table in enumerate(ARENA.tables)
    }
    return Gradients(buffers, None, tables)


def contents() -> dict:
    found = {
        "dense and rows": gradients(),
        "some touched": Gradients(gradients().buffers, frozenset({0, 2}), {}),
        "no rows": gradients(rows=0),
    }
    for name in COMPRESSIONS:
        if name != "none":
            compressor = make_compressor(name)
            found[name] = (compressor.compress(gradients()),)
            found[f"{name}, no rows"] = (compressor.compress(gradients(rows=0)),)
            found[f"{name}, all left out"] = compressor.remainder(gradients())
    compressor = make_compressor("int8")
    one, two = (
        message(step, step, 0.0, content=(compressor.compress(gradients(step)),))
        for step in (1, 2)
    )
    found["merged"] = one.merge(two).content
    assert len(found["merged"]) == 2
    return found


CONTENTS = contents()
every_content = pytest.mark.parametrize("name", CONTENTS)


def gate() -> Gate:
    return Gate("run", "me", ARENA)


def parcel(header, frames) -> Parcel:
    return Parcel.sealed({"sub-header": header, "serializer": "dask"}, frames)


def real(name: str = "dense and rows", **overrides):
    """Header and frames of a real message, to be spoiled."""
    header, frames = encode(message(1, 3, 0.0, content=CONTENTS[name], **overrides))
    return copy.deepcopy(header), list(frames)


def refused(header, frames) -> str:
    """Why a message is refused."""
    one = gate()
    assert one.open(parcel(header, frames), SENDER) is None
    ((reason, count),) = one.refused.items()
    assert count == 1
    return reason


@every_content
def test_what_fits_is_let_in(name):
    one = gate()
    sent = message(1, 3, 0.0, content=CONTENTS[name])
    got = one.open(Parcel(sent), SENDER)
    assert not one.refused
    assert (got.first, got.last, got.clock) == (1, 3, {"a": 0})
    for mine, theirs in zip(got.gradients.buffers, sent.gradients.buffers, strict=True):
        assert torch.equal(mine, theirs)


def test_a_message_without_steps_is_let_in():
    assert gate().open(Parcel(message(4, 3, 0.0, content=gradients())), SENDER)


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("share", ["gradient", "update"])
def test_all_that_replicas_of_such_a_model_send_is_let_in(compression, share):
    class Model(Mixed):
        def forward(self, x):
            bits = self.narrow(x[:, :8].bfloat16()).float()
            ids = x[:, :4].abs().mul(10).long()
            rows = self.words(ids).sum((1, 2)) + self.bags(ids).float().sum(1)
            return self.layer(x).sum(1) + bits.sum(1) + rows

    @gen_cluster(client=True, timeout=60)
    async def run(c, s, a, b):
        arguments = linear(model=Model, compression=compression, share=share)
        arguments["loss"] = nn.functional.mse_loss
        arguments["optimizer"] = functools.partial(torch.optim.SGD, lr=1e-6)
        async with ta.Trainer(c, **arguments) as trainer:
            x = torch.rand(8, 20)
            reports = await train_all(trainer, [(x.numpy(), x[:, 0].numpy())] * 30)
            assert not [report.error for report in reports if report.error]
            stats = list((await trainer.exchange_stats()).values())
        assert any(one["received"] for one in stats)
        assert not any(one["refused"] for one in stats)

    run()


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("run_id", "yesterday's", "run"),
        ("run_id", 3, "format"),
        ("origin", "me", "origin"),
        ("origin", "b", "origin"),
        ("origin", None, "format"),
        ("token", "of another run", "origin"),
        ("token", None, "format"),
        ("first", 0, "steps"),
        ("first", 5, "steps"),
        ("first", 1.0, "format"),
        ("first", True, "format"),
        ("last", -1, "steps"),
        ("last", 1 << 80, "steps"),
        ("samples", -3, "steps"),
        ("samples", math.nan, "format"),
        ("taken", -1, "steps"),
        ("clock", {"a": -1}, "format"),
        ("clock", {"a": 1.5}, "format"),
        ("clock", {3: 1}, "format"),
        ("clock", [], "format"),
        ("age", -1.0, "format"),
        ("age", math.nan, "format"),
        ("age", math.inf, "format"),
        ("encoded", True, "format"),
        ("encoded", 0, "format"),
        ("parts", [], "layout"),
        ("parts", None, "format"),
        ("more", 1, "format"),
    ],
)
def test_a_field_that_cannot_be_is_refused(field, value, reason):
    header, frames = real()
    header[field] = value
    assert refused(header, frames) == reason


@pytest.mark.parametrize("field", real()[0])
def test_a_field_that_is_missing_is_refused(field):
    header, frames = real()
    del header[field]
    assert refused(header, frames) == "format"


@pytest.mark.parametrize("header", [None, 3, [], {}, "header", b"\x80\x04N."])
def test_what_is_no_message_is_refused(header):
    assert refused(header, []) == "format"


class Exploding:
    """Does harm when it is unpickled."""

    def __reduce__(self):
        return pytest.fail, ("it was unpickled",)


def test_a_pickle_is_refused_and_not_opened():
    header, frames = Parcel(Exploding()).seal()
    one = gate()
    assert one.open(Parcel.sealed(header, list(frames)), SENDER) is None
    assert one.refused == {"format": 1}


@every_content
def test_a_frame_of_another_length_is_refused(name):
    _, frames = real(name)
    for number, frame in enumerate(frames):
        for spoiled in (bytes(frame) + b"x", bytes(frame)[:-1], b""):
            if len(spoiled) != len(frame):
                header, rest = real(name)
                rest[number] = spoiled
                assert refused(header, rest) == "size"


@every_content
def test_a_frame_more_or_less_is_refused(name):
    header, frames = real(name)
    assert refused(header, [*frames, b""]) == "size"
    assert refused(header, frames[:-1]) == "size"
    assert refused(header, []) == "size"


def buffer_shape(header):
    header["parts"][0]["buffers"][0][1][0] = TEN_GIGABYTES


def buffer_dtype(header):
    header["parts"][0]["buffers"][0][0] = "complex128"


def a_buffer_more(header):
    header["parts"][0]["buffers"].append(["float32", [TEN_GIGABYTES]])


def no_such_table(header):
    header["parts"][0]["rows"][0][0] = 2


def a_table_twice(header):
    header["parts"][0]["rows"][1][0] = 0


def more_rows_than_the_table(header):
    header["parts"][0]["rows"][0][1][1][0] = TEN_GIGABYTES


def wider_rows(header):
    header["parts"][0]["rows"][0][2][1][1] = TEN_GIGABYTES


def row_numbers_as_floats(header):
    header["parts"][0]["rows"][0][1][0] = "float32"


def touched_that_is_not_there(header):
    header["parts"][0]["touched"] = [0, 4]


def two_plain_sums(header):
    header["parts"] *= 2


@pytest.mark.parametrize(
    "spoil",
    [
        buffer_shape,
        buffer_dtype,
        a_buffer_more,
        no_such_table,
        a_table_twice,
        more_rows_than_the_table,
        wider_rows,
        row_numbers_as_floats,
        touched_that_is_not_there,
        two_plain_sums,
    ],
)
def test_another_layout_is_refused(spoil):
    header, frames = real()
    spoil(header)
    assert refused(header, frames) == "layout"


@pytest.mark.parametrize("name", ["bfloat16", "float16", "int8"])
@pytest.mark.parametrize("key", ["tensor", "codes"])
@pytest.mark.parametrize("value", [["float32", [TEN_GIGABYTES]], ["int32", [6464]]])
def test_what_would_decode_to_another_size_is_refused(name, key, value):
    header, frames = real(name)
    header["parts"][0]["buffers"][0][key] = value
    assert refused(header, frames) == "layout"


def test_more_encoded_sums_than_a_sender_makes_are_refused():
    header, frames = real("int8")
    header["parts"] *= 100
    assert refused(header, frames * 100) == "size"


@pytest.mark.parametrize(
    "ids", [[-1, 3], [3, 3], [7, 2], [2, 500], [-(2**31), 2**31 - 1]]
)
def test_row_numbers_that_do_not_ascend_in_the_table_are_refused(ids):
    content = Gradients(
        gradients().buffers, None, {0: Rows(torch.tensor(ids), torch.zeros(2, 6))}
    )
    header, frames = encode(message(1, 1, 0.0, content=content))
    assert refused(header, frames) == "rows"


def spoiled(value, dice):
    """Something else in place of a value of a header."""
    others = [
        None, True, -1, 0, 1, 2**40, 2**70, 0.5, math.nan, "", "float64", b"\x00",
        [], {}, [value], {"a": value}, [TEN_GIGABYTES], ["float32", [2**50]],
    ]  # fmt: skip
    return dice.choice(others)


def places(tree, found):
    """All places in a header where a value can be changed."""
    keys = tree if isinstance(tree, dict) else range(len(tree))
    for key in keys:
        found.append((tree, key))
        if isinstance(tree[key], (dict, list)):
            places(tree[key], found)
    return found


def mutate(header, frames, dice):
    """Spoil a message in one to three places; what comes out may still be right."""
    for _ in range(dice.randint(1, 3)):
        kind = dice.random()
        if kind < 0.6:
            tree, key = dice.choice(places(header, []))
            if dice.random() < 0.15:
                del tree[key]
            else:
                tree[key] = spoiled(tree[key], dice)
            if not header:
                return
        elif frames:
            at = dice.randrange(len(frames))
            data = bytes(frames[at])
            cut = dice.randrange(len(data) + 1)
            frames[at] = dice.choice(
                [data[:cut], data + data[:cut], data[cut:], b"", data[::-1]]
            )
            if kind > 0.9:
                dice.choice(
                    [frames.pop, functools.partial(frames.append, b"x" * cut)]
                )()


@every_content
def test_whatever_is_spoiled_nothing_is_raised_and_no_memory_taken(name, caplog):
    dice = random.Random(name)
    one = gate()
    rounds = 600
    let_in = 0
    cap = 4 * (ARENA.layout.nbytes + sum(table.nbytes for table in ARENA.tables))
    tracemalloc.start()
    try:
        for _ in range(rounds):
            header, frames = real(name)
            mutate(header, frames, dice)
            tracemalloc.reset_peak()
            before, _ = tracemalloc.get_traced_memory()
            got = one.open(parcel(header, frames), SENDER)
            _, peak = tracemalloc.get_traced_memory()
            assert peak - before < cap
            if got is not None:
                # Then it fits: the sum can be taken, and is of the right size.
                let_in += 1
                total = got.gradients
                assert [len(each) for each in total.buffers] == ARENA.layout.sizes
    finally:
        tracemalloc.stop()
    assert sum(one.refused.values()) == rounds - let_in
    assert let_in < rounds / 2
    assert len(caplog.records) <= len(REASONS)


def test_refusals_are_logged_once_for_each_reason_and_sender(caplog):
    other = SENDER._replace(id="2")
    one = gate()
    with caplog.at_level(logging.WARNING):
        for _ in range(5):
            one.refuse("run", SENDER, "x" * 10_000)
            one.refuse("size", SENDER, "reported")
            one.refuse("size", other, "reported")
    assert one.refused == {"run": 5, "size": 10}
    assert len(caplog.records) == 3
    assert all(len(record.getMessage()) < 1000 for record in caplog.records)


def test_a_publisher_that_has_been_seen_is_known_also_after_leaving():
    one = gate()
    assert not one.knows("a")
    one.see(View.of("topic", 1, [SENDER], []))
    one.see(View.of("topic", 2, [], []))
    assert one.knows("a")


# ---- values -------------------------------------------------------------------------


BAD = {
    "float32": [math.nan, math.inf, -math.inf],
    "bfloat16": [math.nan, math.inf],
    "float16": [math.nan, -math.inf],
}


def spoil_values(header, frames, dice) -> None:
    """Write NaN or infinity over some number of a message."""
    numbers = [
        (frame, described[0])
        for described, frame in zip(described_frames(header), frames, strict=True)
        if described[0] in BAD and len(frame)
    ]
    frame, dtype = dice.choice(numbers)
    kind = getattr(torch, dtype)
    bad = torch.tensor([dice.choice(BAD[dtype])], dtype=kind)
    place = dice.randrange(len(frame) // kind.itemsize) * kind.itemsize
    frame[place : place + kind.itemsize] = bad.view(torch.uint8).numpy().tobytes()


def described_frames(header):
    """Dtype and shape of each frame, in their order."""
    found = []

    def add(one) -> None:
        if isinstance(one, dict):
            found.append(one["codes"])
            if one["scales"] is not None:
                found.append(one["scales"])
        else:
            found.append(one)

    for part in header["parts"]:
        for one in part["buffers"]:
            add(one)
        for _, ids, values in part["rows"]:
            add(ids)
            add(values)
    return found


def exchange(applied: list[Gradients], *senders: Member) -> Exchange:
    """An exchange without a cluster, which has seen its senders."""
    one = Exchange("run", "me", ARENA, applied.append, lambda: None)
    one.gate.see(View.of("topic", 1, senders or [SENDER], []))
    return one


async def put(one: Exchange, sender: Member, parcel: Parcel) -> None:
    """Give a message to an exchange, as the subscription does."""
    answer = one._receive(parcel, sender)
    assert answer is None or isinstance(answer, asyncio.Future)


def finite(total: Gradients) -> bool:
    values = [*total.buffers, *(rows.values for rows in total.rows.values())]
    return all(bool(torch.isfinite(each.float()).all()) for each in values)


@every_content
def test_nothing_that_is_nan_or_infinite_gets_in(name):
    async def run() -> None:
        dice = random.Random(name)
        refused = 0
        for _ in range(150):
            applied: list[Gradients] = []
            one = exchange(applied)
            header, frames = real(name)
            frames = [bytearray(frame) for frame in frames]
            spoil_values(header, frames, dice)
            if dice.random() < 0.3:
                mutate(header, frames, dice)
            await put(one, SENDER, parcel(header, frames))
            one.apply_arrived()
            assert all(map(finite, applied))
            assert len(applied) + one.statistics()["refused"] == 1
            refused += one.statistics().get("refused_values", 0)
        assert refused > 75

    asyncio.run(run())


def test_a_peer_that_sends_nan_is_left_out_and_the_others_are_heard():
    async def run() -> None:
        other = SENDER._replace(id="2", member="b")
        applied: list[Gradients] = []
        one = exchange(applied, SENDER, other)
        poison = gradients()
        poison.buffers[0][7] = math.nan
        bad = message(1, 3, 0.0, content=poison, clock={})
        good = message(1, 2, 0.0, content=gradients(1), origin="b", clock={})
        await put(one, SENDER, Parcel(bad))
        await put(one, other, Parcel(good))
        one.apply_arrived()
        (total,) = applied
        assert torch.equal(total.buffers[0], gradients(1).buffers[0])
        assert one.clock.snapshot() == {"b": 2}
        assert one.statistics()["refused_values"] == 1
        assert one.is_behind

        # What the bad one sends next does not fit any more, however sound.
        next_one = message(4, 4, 0.0, content=gradients(2), clock={})
        await put(one, SENDER, Parcel(next_one))
        one.apply_arrived()
        assert len(applied) == 1
        assert one.statistics()["refused_gap"] == 1

    asyncio.run(run())


def test_what_is_nan_is_acknowledged_only_when_the_client_knows():
    async def run() -> None:
        one = exchange([])
        poison = gradients()
        poison.rows[0].values[0, 0] = math.inf
        answer = one._receive(Parcel(message(1, 1, 0.0, content=poison)), SENDER)
        one.apply_arrived()
        await asyncio.sleep(0)
        assert not answer.done()
        assert one.missed()
        await answer

    asyncio.run(run())


def test_finite_messages_whose_sum_overflows_are_applied_one_by_one():
    async def run() -> None:
        other = SENDER._replace(id="2", member="b")
        applied: list[Gradients] = []
        one = exchange(applied, SENDER, other)
        for sender in (SENDER, other):
            huge = gradients(rows=0)
            huge.buffers[0].fill_(3e38)
            await put(
                one,
                sender,
                Parcel(message(1, 1, 0.0, content=huge, origin=sender.member)),
            )
        one.apply_arrived()
        assert len(applied) == 2
        assert all(map(finite, applied))
        assert not one.statistics()["refused"]

    asyncio.run(run())


def test_a_refused_message_is_reported_to_the_user_once():
    one = exchange([])
    notices = Notices()
    for _ in range(3):
        one.gate.refuse("origin", SENDER, "reported")
    one.gate.refuse("values", "replica-1", "steps 1 to 3")
    one.report_to(notices)
    strange, poisonous = notices.take().values()
    assert "'a' (worker tcp://127.0.0.1:1) was refused" in strange
    assert "replica 'replica-1' was refused: it holds NaN" in poisonous
    one.report_to(notices)
    assert not notices.take()


# ---- in a cluster -------------------------------------------------------------------


def replicas_of(*workers) -> list:
    return [actor for one in workers for actor in one.state.actors.values()]


async def publish(worker, topic: str, member: str, *messages) -> None:
    """Publish as a stranger who can reach the cluster, and wait for acknowledgement."""
    async with Pub(topic, worker=worker, member=member) as pub:
        await pub.wait_for(lambda view: len(view.subscribers) == 2)
        for one in messages:
            pub.put(one)
        await pub.flushed(timeout="10s")


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 3, timeout=60)
async def test_strange_messages_are_acknowledged_counted_and_change_nothing(
    c, s, *workers
):
    data = linear_data(20)
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        await train_all(trainer, data)
        before = await trainer.state_dict()
        run_id = trainer.run_id
        wrong = Gradients([torch.full((7,), 1e6)])
        await publish(
            workers[2],
            f"tensair/{run_id}/gradients",
            "stranger",
            Exploding(),
            {"first": 1},
            message(1, 1, 0.0, run_id="yesterday's", origin="stranger"),
            message(1, 1, 0.0, run_id=run_id, origin="stranger", content=wrong),
        )
        stats = list((await trainer.exchange_stats()).values())
        after = await trainer.state_dict()
        assert torch.equal(before["weight"], after["weight"])
        for one in stats:
            assert one["refused"] == 4
            assert (one["refused_format"], one["refused_run"]) == (2, 1)
            assert one["refused_layout"] == 1
        # The run goes on, on all replicas.
        await train_all(trainer, data)
        assert {info.version for info in trainer.replicas} == {40}


@pytest.mark.parametrize("who", ["a client", "a member", "a namesake"])
def test_a_message_from_outside_the_run_changes_nothing_and_leaves_no_gap(who):
    @gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 3, timeout=60)
    async def run(c, s, *workers):
        data = linear_data(20)
        async with ta.Trainer(c, **linear(replicas=2)) as trainer:
            await train_all(trainer, data)
            before = await trainer.state_dicts()
            replicas = replicas_of(*workers)
            exchanges = [each.exchange for each in replicas]
            name = "replica-1" if who == "a namesake" else "stranger"
            heard = 1 if who == "a namesake" else 2
            (size,) = replicas[0].learner.arena.layout.sizes
            mine = {"client": c} if who == "a client" else {"worker": workers[2]}
            topic = f"tensair/{trainer.run_id}/gradients"
            async with Pub(topic, member=name, **mine) as pub:
                await pub.wait_for(lambda view: len(view.subscribers) == 2)
                for first, value in ((1, math.nan), (2, 1e6), (900, 1e6)):
                    content = Gradients([torch.full((size,), value)])
                    reported = {"run_id": trainer.run_id, "origin": name}
                    pub.put(message(first, first, 0.0, content=content, **reported))
                await pub.flushed(timeout="10s")
            stats = list((await trainer.exchange_stats()).values())
            after = await trainer.state_dicts()
            for old, new in zip(before.values(), after.values(), strict=True):
                assert torch.equal(old["weight"], new["weight"])
            assert sorted(one.get("refused_origin", 0) for one in stats) == sorted(
                [3] * heard + [0] * (2 - heard)
            )
            assert not any(each.is_behind for each in exchanges)
            await train_all(trainer, data)
            assert {info.version for info in trainer.replicas} == {40}
            reported = [
                text for text in trainer.events["text"] if "was refused" in text
            ]
            assert len(reported) == 1
            assert f"'{name}'" in reported[0]

    run()


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 2, timeout=60)
async def test_an_origin_that_is_not_in_the_run_is_refused(c, s, a, b):
    async with ta.Trainer(c, **linear(replicas=1)) as trainer:
        (replica,) = replicas_of(a, b)
        before = await trainer.state_dict()
        zeros = replica.learner.arena.layout.zeros(torch.device("cpu"))
        forged = message(
            1,
            1,
            0.0,
            run_id=trainer.run_id,
            origin="nobody",
            content=Gradients([each + 1e6 for each in zeros]),
        )
        # Nobody publishes under that name: the delivery is forged, too.
        sender = Member("1", b.address, "nobody", "worker")
        with dask.config.set({"tensair.pubsub.timeout": "100ms"}):
            (address,) = (info.address for info in trainer.replicas)
            answer = await b.rpc(address).tensair_pubsub_deliver(
                subscription=replica.exchange.sub.id,
                sender=list(sender),
                number=1,
                parcels=[to_serialize(Parcel(forged))],
            )
        assert answer == "ok"
        assert replica.exchange.statistics()["refused_origin"] == 1
        after = await trainer.state_dict()
        assert torch.equal(before["weight"], after["weight"])


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)])
async def test_nothing_that_is_spoiled_comes_out_of_the_inlet(c, s, a):
    """The whole way of a message but for the sockets."""
    applied: list[Gradients] = []
    exchange = Exchange("run", "me", ARENA, applied.append, lambda: None)
    exchange.gate.see(View.of("topic", 1, [SENDER], []))
    inlet = Inlet(exchange._receive, asyncio.ensure_future, sealed=True)
    dice = random.Random(0)
    names = list(CONTENTS)
    rounds = 500
    for number in range(1, rounds + 1):
        header, frames = real(dice.choice(names))
        mutate(header, frames, dice)
        one = parcel(header, frames)
        delivery = asyncio.ensure_future(inlet.receive(SENDER, number, [one]))
        while not delivery.done():
            exchange.apply_arrived()
            await asyncio.sleep(0)
        assert delivery.result() == "ok"
    assert (inlet.messages, inlet.errors) == (rounds, 0)
    # All of the rest claim the same steps, so they were not applied again.
    assert len(applied) <= rounds / 10
    for total in applied:
        assert [len(each) for each in total.buffers] == ARENA.layout.sizes
    assert exchange.statistics()["refused"] > rounds / 2


@gen_cluster(client=True, nthreads=[("127.0.0.1", 1)] * 3, timeout=60)
async def test_a_message_that_overtakes_the_news_of_its_origin_is_not_lost(
    c, s, *workers
):
    data = linear_data(40)
    async with ta.Trainer(c, **linear(replicas=2)) as trainer:
        exchanges = [each.exchange for each in replicas_of(*workers)]
        topic = f"tensair/{trainer.run_id}/gradients"
        for each in exchanges:
            each.gate._members.clear()  # as if the view were still under way
        reports = [trainer.train(x, y) for x, y in data]
        await asyncio.gather(*reports)
        await async_poll_for(
            lambda: any(each.statistics()["sent"] for each in exchanges), timeout=10
        )
        assert not any(each.statistics()["received"] for each in exchanges)
        async with Pub(topic, worker=workers[2], member="news"):
            await trainer.drain()
        assert {info.version for info in trainer.replicas} == {40}
        assert not any(each.statistics()["refused"] for each in exchanges)
