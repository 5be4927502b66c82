"""Add the pages to the dashboard of a scheduler that runs already."""

from __future__ import annotations

from typing import Any

from tensair_dask.telemetry.scheduler import Telemetry

__all__ = ["Attachment"]


class Attachment:
    """The pages and routes on one scheduler's dashboard.

    Parameters
    ----------
    scheduler
        To attach to.
    telemetry
        What is shown.

    Attributes
    ----------
    page
        Path of the page below the dashboard's address; None if there is none.
    reason
        Why there is none.
    """

    def __init__(self, scheduler: Any, telemetry: Telemetry) -> None:
        self.page: str | None = None
        self.reason = "not yet"

    def detach(self) -> None:
        """Take the pages away."""
