from __future__ import annotations

import pickle

import pytest

from tensair_dask.pubsub.view import Member, View

PUB = Member("p", "tcp://a:1", "r1", "worker")
SAME = Member("s1", "tcp://a:1", "r1", "worker")
OTHER = Member("s2", "tcp://b:1", "r2", "worker")
NAMELESS = Member("s3", "Client-1", None, "client")


def view(*publishers):
    return View.of("t", 7, publishers, [SAME, OTHER, NAMELESS])


def test_a_view_survives_the_wire():
    assert View.from_wire(view(PUB).to_wire()) == view(PUB)


def test_a_view_can_be_returned_from_a_task():
    assert pickle.loads(pickle.dumps(view(PUB))) == view(PUB)


def test_a_view_cannot_be_changed():
    with pytest.raises(TypeError):
        view(PUB).publishers["x"] = PUB
    with pytest.raises(AttributeError):
        view(PUB).number = 8


def test_a_publisher_does_not_send_to_its_namesake():
    assert set(view(PUB).destinations("p")) == {"s2", "s3"}


def test_a_publisher_without_a_name_sends_to_all():
    nameless = PUB._replace(member=None)
    assert set(view(nameless).destinations("p")) == {"s1", "s2", "s3"}


def test_membership_is_asked_by_id():
    assert "p" in view(PUB)
    assert "s2" in view(PUB)
    assert "x" not in view(PUB)
