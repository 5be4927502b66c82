"""Events of a training."""

from __future__ import annotations

import json

import msgpack

from tensair_dask.observe.telemetry.events import Event, Events


def test_an_event_is_plain():
    event = Event("drift", "the loss rises", 12.5, 7)
    plain = event.plain()
    reported = {"kind": "drift", "text": "the loss rises", "time": 12.5, "index": 7}
    reported["replica"] = ""
    assert plain == reported
    assert msgpack.loads(msgpack.dumps(plain)) == json.loads(json.dumps(plain)) == plain


def test_the_newest_are_kept():
    events = Events(maxlen=3)
    for number in range(10):
        events.append(Event("note", str(number), float(number)))
    assert [event.text for event in events] == ["7", "8", "9"]
    assert len(events) == 3
    assert events.added == 10


def test_they_may_grow_while_they_are_read():
    events = Events(maxlen=3)
    for number in range(3):
        events.append(Event("note", str(number)))
    for event in events:
        events.append(Event("note", event.text + "!"))
    assert [event.text for event in events] == ["0!", "1!", "2!"]


def test_a_frame_has_one_row_an_event():
    events = Events()
    assert events.frame().empty
    assert list(events.frame()) == ["time", "kind", "text", "index", "replica"]
    events.append(Event("mode", "always", 0.0))
    frame = events.frame()
    assert frame["time"].iloc[0].isoformat() == "1970-01-01T00:00:00+00:00"
    assert frame[["kind", "text"]].to_numpy().tolist() == [["mode", "always"]]
