from __future__ import annotations

from types import SimpleNamespace

from tensair_dask.errors import RecordError, ShapeError
from tensair_dask.reports import Report
from tensair_dask.runner.summary import Tally


def test_refusals_are_counted_and_the_first_error_is_given():
    tally = Tally()
    assert tally.describe_refusals() == ""
    assert tally.refusals() == {
        "refused": {},
        "refused_records": 0,
        "first_refusal": None,
    }
    tally.refuse(SimpleNamespace(error=RecordError("no flight")))
    tally.refuse(SimpleNamespace(error=RecordError("nor this")))
    assert tally.describe_refusals() == "Refused: 2 records. The first: no flight"
    for _ in range(3):
        tally.add(Report.refused(0, 4, ShapeError("too wide")))
    assert tally.describe_refusals() == (
        "Refused: 3 mini-batches (3 ShapeError) and 2 records. The first: no flight"
    )
    assert tally.refusals() == {
        "refused": {"ShapeError": 3},
        "refused_records": 2,
        "first_refusal": "no flight",
    }
