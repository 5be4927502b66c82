"""The costs of a message where `simulate.py` is given no measurement."""

from __future__ import annotations

from scale_out.costs import Costs, Line

__all__ = ["MEASURED", "SAYS"]

SAYS = "Costs of an Intel virtual machine with 2 cores, as `scaling.py` measured them."

MEASURED = {
    "shm": Costs(loop=Line(0.3e-3, 0.05e-3), thread=Line(0.1e-3, 0.1e-3)),
    "tcp": Costs(loop=Line(0.9e-3, 0.6e-3), thread=Line(0.1e-3, 0.1e-3)),
}
