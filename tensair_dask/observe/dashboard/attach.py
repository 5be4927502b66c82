"""Add the pages to the dashboard of a scheduler that runs already."""

from __future__ import annotations

import logging
from typing import Any

from tornado.ioloop import IOLoop

from tensair_dask import config
from tensair_dask.observe.telemetry.scheduler import Telemetry

__all__ = ["Attachment"]

logger = logging.getLogger(__name__)


class Attachment:
    """The pages on one scheduler's dashboard, as a second Bokeh application.

    Dask lists its own pages before this one comes; the lists that it keeps for the
    navigation bar, and for JupyterLab's extension, are extended.

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
        self.reason = ""
        self._scheduler = scheduler
        self._application: Any = None
        self._entries: list[tuple[list[Any], Any]] = []
        self._rule: Any = None
        try:
            self._attach(telemetry)
        except ImportError as error:
            self.reason = f"the scheduler cannot import {error.name or error}"
        except Exception as error:
            # Dask's dashboard is not a public interface; training must not need it.
            logger.exception("The pages could not be added to the dashboard")
            self.detach()
            self.reason = f"{type(error).__name__}: {error}"

    def _attach(self, telemetry: Telemetry) -> None:
        http = self._scheduler.http_application  # None: no server was started
        applications = http.applications if http is not None else ()
        first = next(
            (each for each in applications if hasattr(each, "app_paths")), None
        )
        if first is None:
            self.reason = (
                "the scheduler's dashboard is off, or bokeh is not installed there"
            )
            return
        from distributed.dashboard.core import BokehApplication
        from distributed.dashboard.scheduler import template_variables

        from tensair_dask.observe.dashboard.pages import MAIN, pages

        shared = template_variables(self._scheduler)
        # Every other row: drawing takes more of the browser than all else here.
        milliseconds = round(2000 * config.get_seconds("dashboard.interval"))
        made = pages(telemetry, milliseconds)
        application = BokehApplication(
            made, self._scheduler, prefix=first.prefix, template_variables=shared
        )
        application.initialize(IOLoop.current())
        application.start()
        http.add_application(application)
        self._application = application
        self._list_pages(shared, MAIN, list(made))
        self._list_for_jupyterlab(http, first.prefix)
        self.page = MAIN

    def _list_pages(self, shared: Any, main: str, paths: list[str]) -> None:
        """Add to the navigation bar and its menu, which all documents share."""
        menu = [
            {
                "url": path.strip("/"),
                "name": path.strip("/").replace("-", " ").title()[11:],
            }
            for path in paths
            if "individual" in path
        ]
        for known, entry in [
            (shared["pages"], main),
            *((shared["plots"], entry) for entry in menu),
        ]:
            if entry not in known:
                known.append(entry)
                self._entries.append((known, entry))
        pages = shared["pages"]
        if "info" in pages:  # which is the last one by custom
            pages.remove("info")
            pages.append("info")

    def _list_for_jupyterlab(self, http: Any, prefix: str) -> None:
        """Dask's own list has only the pages of its first application."""
        from distributed.http.scheduler.info import IndividualPlots

        application = self._application

        class AllIndividualPlots(IndividualPlots):
            def write(self, chunk: Any) -> None:
                if isinstance(chunk, dict):
                    chunk = chunk | {
                        _title(path): path
                        for path in application.app_paths
                        if "individual-" in path
                    }
                super().write(chunk)

        http.add_handlers(
            r".*$",
            [
                (
                    rf"{prefix.rstrip('/')}/individual-plots.json",
                    AllIndividualPlots,
                    {"dask_server": self._scheduler},
                )
            ],
        )
        # Where tornado puts it: before the rule for everything else.
        self._rule = http.default_router.rules[-2]

    def detach(self) -> None:
        """Take the pages away; those that are open stand still."""
        if self._application is None:
            return
        http = self._scheduler.http_application
        if self._application in http.applications:
            http.applications.remove(self._application)
        if self._rule in http.default_router.rules:
            http.default_router.rules.remove(self._rule)
        self._application.stop()
        for known, entry in self._entries:
            if entry in known:
                known.remove(entry)
        self._application = None
        self.page, self.reason = None, "the plugin was unregistered"


def _title(path: str) -> str:
    """As Dask titles its own pages."""
    return path.strip("/").replace("-", " ").title()
