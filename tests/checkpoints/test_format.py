"""The file of a checkpoint: it comes back as it was, or is refused for what it is."""

from __future__ import annotations

import io
import pickle
import struct
import threading
import time
import zipfile
import zlib

import pytest
import torch
from checkpoint_examples import Words, example, same, small, trained

from tensair_dask.checkpoints import Checkpoint
from tensair_dask.checkpoints.format import _FIELDS, _MAGIC, FORMAT, decode, encode
from tensair_dask.errors import CheckpointDamagedError, CheckpointError


def file_of(checkpoint: Checkpoint) -> bytes:
    return b"".join(encode(checkpoint))


def file_around(content, number: int = FORMAT, legacy: bool = False) -> bytes:
    """A file with a header that is right, whatever it holds."""
    body = io.BytesIO()
    torch.save(content, body, _use_new_zipfile_serialization=not legacy)
    return with_header(body.getvalue(), number)


def with_header(body: bytes, number: int = FORMAT) -> bytes:
    checksum = zlib.crc32(body)
    fields = _FIELDS.pack(_MAGIC, number, len(body), checksum, b"9.8.7")
    return fields + struct.pack("<I", zlib.crc32(fields)) + body


def test_a_whole_training_comes_back_bit_by_bit():
    checkpoint = example()
    again = decode(file_of(checkpoint))
    assert same(again, checkpoint)
    assert again.versions["torch"] == torch.__version__


def test_model_and_optimizers_go_on_as_if_nothing_had_been():
    def step(model, optimizers):
        out = model(torch.tensor([1, 2, 5]))
        torch.nn.functional.cross_entropy(out, torch.tensor([2, 3, 6])).backward()
        for optimizer in optimizers:
            optimizer.step()
        return model.state_dict()

    model, optimizers = trained()
    states = [each.state_dict() for each in optimizers]
    again = decode(file_of(Checkpoint(model.state_dict(), states)))
    other, its_optimizers = trained()
    for parameter in other.parameters():
        parameter.data.zero_()
    other.load_state_dict(again.model)
    for optimizer, state in zip(its_optimizers, again.optimizers, strict=True):
        optimizer.load_state_dict(state)
    assert same(step(other, its_optimizers), step(model, optimizers))


def test_weights_that_two_layers_share_are_written_once():
    again = decode(file_of(Checkpoint(Words().state_dict())))
    again.model["out.weight"].zero_()
    assert not again.model["again.weight"].any()


def test_it_is_read_from_anything_that_has_a_buffer():
    data = file_of(small(3))
    for given in (data, bytearray(data), memoryview(data)):
        assert decode(given).index == 3


def test_a_file_that_is_cut_off_anywhere_is_refused():
    data = file_of(small())
    for end in range(len(data)):
        with pytest.raises(CheckpointDamagedError, match=r"here\.bin .*whole checkp"):
            decode(data[:end], "here.bin")
    with pytest.raises(CheckpointDamagedError, match="bytes"):
        decode(data + b"\0")


def test_a_file_with_any_byte_changed_is_refused():
    data = bytearray(file_of(small()))
    for place in range(len(data)):
        data[place] ^= 1 << place % 8
        with pytest.raises(CheckpointDamagedError, match=r"here\.bin "):
            decode(data, "here.bin")
        data[place] ^= 1 << place % 8
    assert decode(data).index == 0


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"hello", r"no checkpoint of tensair_dask: it begins with b'hello'"),
        (b"\0" * 1000, "no checkpoint of tensair_dask"),
        (pickle.dumps({"a": 1}), "perhaps a pickle"),
    ],
)
def test_a_file_that_is_no_checkpoint_is_refused(data, said):
    with pytest.raises(CheckpointDamagedError, match=said) as caught:
        decode(data, "here.bin")
    assert str(caught.value).startswith("here.bin ")


def test_the_error_for_a_plain_file_of_torch_says_what_to_do():
    file = io.BytesIO()
    torch.save({"w": torch.ones(2)}, file)
    with pytest.raises(CheckpointDamagedError, match=r"torch.save.*load_state_dict"):
        decode(file.getvalue())


def test_the_error_for_a_newer_format_names_the_version_that_wrote_it():
    with pytest.raises(CheckpointError, match=r"tensair_dask 9\.8\.7.*up to 1") as got:
        decode(file_around({}, FORMAT + 1), "here.bin")
    assert not isinstance(got.value, CheckpointDamagedError)


RAN = []


class Evil:
    def __reduce__(self):
        return RAN.append, ("it ran",)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("thing", [Evil(), Words(), len], ids=["code", "model", "name"])
def test_what_needs_code_is_refused_and_does_not_run(thing, legacy):
    data = file_around({"model": {"w": thing}}, legacy=legacy)
    with pytest.raises(CheckpointError, match=r"here\.bin"):
        decode(data, "here.bin")
    assert not RAN


@pytest.mark.filterwarnings("ignore")
def test_a_program_of_torchscript_is_refused():
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Linear(1, 1)), file)
    with pytest.raises(CheckpointError, match="code that it brings itself"):
        decode(with_header(file.getvalue()))


@pytest.mark.parametrize(
    "name", ["archive/code/x.py", "archive/constants.pkl", "archive/data.pkl", "x"]
)
@pytest.mark.filterwarnings("ignore")
def test_an_archive_of_more_than_tensors_is_refused_before_torch_sees_it(
    name, monkeypatch
):
    file = io.BytesIO()
    torch.save({"w": torch.ones(2)}, file)
    with zipfile.ZipFile(file, "a") as archive:
        archive.writestr(name, b"anything")
    monkeypatch.setattr(torch, "load", lambda *args, **kwargs: RAN.append("torch"))
    with pytest.raises(CheckpointError, match=r"here\.bin is not read"):
        decode(with_header(file.getvalue()), "here.bin")
    assert not RAN


def test_what_only_begins_as_an_archive_is_refused():
    with pytest.raises(CheckpointError, match="it is no archive"):
        decode(with_header(b"PK\x03\x04" + b"x" * 1000))


@pytest.mark.parametrize("content", [[], {}, {"model": 1}, {"model": {}, "clock": {}}])
def test_what_is_something_else_inside_is_refused(content):
    with pytest.raises(CheckpointError, match="does not hold what a checkpoint holds"):
        decode(file_around(content))


@pytest.mark.parametrize("field", ["model", "optimizers", "adaptation", "scores"])
def test_what_cannot_be_read_again_is_not_written(field):
    value = [Evil()] if field == "optimizers" else {"a": Evil()}
    with pytest.raises(CheckpointError, match=rf"{field}\[.*\] is a .*Evil"):
        encode(small(**{field: value}) if field != "model" else Checkpoint(value))


def test_other_threads_run_while_a_large_model_is_written_and_read():
    checkpoint = Checkpoint({"w": torch.zeros(25_000_000)})
    ended = threading.Event()

    def work():
        decode(file_of(checkpoint))  # joining the buffers holds the interpreter
        for _ in range(3):
            encode(checkpoint)
        ended.set()

    thread = threading.Thread(target=work)
    thread.start()
    turns = 0
    while not ended.is_set():
        time.sleep(0.001)
        turns += 1
    thread.join()
    # Had it held the interpreter there would have been a handful.
    assert turns > 30
