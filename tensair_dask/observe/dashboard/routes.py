"""Training as JSON on the scheduler's HTTP server, for scripts and for Prometheus."""

from __future__ import annotations

import json
import logging
import re
import weakref
from typing import Any

from distributed.http.utils import RequestHandler

import tensair_dask
from tensair_dask.observe.telemetry.scheduler import Telemetry

__all__ = ["TARGETS", "TRAINING", "add_routes", "remove_routes"]

logger = logging.getLogger(__name__)

# Below what `dask scheduler --dashboard-prefix` says.
TRAINING = "/json/tensair.json"
TARGETS = "/json/tensair-targets.json"

_NO = ("", "0", "false", "no")

# By scheduler. A handler cannot be taken from a server again: it asks here what there
# is to tell. Held weakly, because a telemetry holds its scheduler.
_telemetries: weakref.WeakKeyDictionary[Any, weakref.ref[Telemetry] | None]
_telemetries = weakref.WeakKeyDictionary()


def add_routes(scheduler: Any, telemetry: Telemetry) -> None:
    """Serve the trainers at `TRAINING` from now on; the cluster may run already.

    With ``?series=1`` the answer has the series, too. At `TARGETS` Prometheus finds
    where the workers' metrics are (``http_sd_configs``).

    Parameters
    ----------
    scheduler
        Whose HTTP server is meant; with or without bokeh.
    telemetry
        Of its trainers.
    """
    http = getattr(scheduler, "http_application", None)
    if http is None:
        return
    if scheduler not in _telemetries:
        prefix, about = _prefix(http), {"dask_server": scheduler}
        routes = [(TRAINING, _Training, about), (TARGETS, _Targets, about)]
        http.add_handlers(
            ".*$",
            [(prefix + re.escape(path), kind, args) for path, kind, args in routes],
        )
    _telemetries[scheduler] = weakref.ref(telemetry)


def remove_routes(scheduler: Any, telemetry: Telemetry) -> None:
    """Serve it no longer; it need not be what is served."""
    if _telemetry(scheduler) is telemetry:
        _telemetries[scheduler] = None


def _telemetry(scheduler: Any) -> Telemetry | None:
    reference = _telemetries.get(scheduler)
    return None if reference is None else reference()


class _Json(RequestHandler):
    """Answers with what `answer` gives."""

    def get(self) -> None:
        telemetry = _telemetry(self.server)
        if telemetry is None:
            self.send_error(404)
            return
        self.set_header("Content-Type", "application/json")
        self.set_header("Cache-Control", "no-store")
        # Anything may come from a client; what JSON lacks becomes text.
        self.write(json.dumps(self.answer(telemetry), allow_nan=False, default=str))

    def answer(self, telemetry: Telemetry) -> Any:
        raise NotImplementedError


class _Training(_Json):
    def answer(self, telemetry: Telemetry) -> Any:
        series = self.get_argument("series", "0").lower() not in _NO
        return {"tensair_dask": tensair_dask.__version__, **telemetry.read(series)}


class _Targets(_Json):
    def answer(self, telemetry: Telemetry) -> Any:
        places = [
            (worker.host, worker.services["dashboard"])
            for worker in telemetry.scheduler.workers.values()
            if worker.services.get("dashboard")
        ]
        targets = [
            f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            for host, port in places
        ]
        return [{"targets": targets}]


def _prefix(http: Any) -> str:
    """What comes before the paths of Dask's own routes; it is kept nowhere else."""
    for rule in http.wildcard_router.rules:
        regex = getattr(rule.matcher, "regex", None)
        path = getattr(regex, "pattern", "").removesuffix("$")
        for known in ("/health", "/metrics", "/info"):
            if path.endswith(known):
                return str(path.removesuffix(known))
    return ""
