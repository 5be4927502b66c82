from __future__ import annotations

import signal
import types

import pytest

from tensair_dask.replica import sigint


@pytest.fixture(autouse=True)
def handler():
    before = signal.getsignal(signal.SIGINT)
    yield before
    signal.signal(signal.SIGINT, before)


@pytest.mark.parametrize(
    ("nanny", "parent"), [(None, None), (None, object()), ("tcp://1.2.3.4:5", None)]
)
def test_ctrl_c_is_left_to_a_program_that_has_its_workers_in_it(
    monkeypatch, handler, nanny, parent
):
    monkeypatch.setattr(sigint.multiprocessing, "parent_process", lambda: parent)
    sigint.ignore_sigint(types.SimpleNamespace(nanny=nanny))
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_process_that_a_nanny_has_started_ignores_ctrl_c(monkeypatch):
    monkeypatch.setattr(sigint.multiprocessing, "parent_process", object)
    sigint.ignore_sigint(types.SimpleNamespace(nanny="tcp://1.2.3.4:5"))
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN
