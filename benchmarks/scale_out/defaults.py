"""The costs of a message where `simulate.py` is given no measurement."""

from __future__ import annotations

from scale_out.costs import Costs, Line

__all__ = ["MEASURED", "SAYS"]

SAYS = (
    "Costs as `scaling.py` measured them on a quiet Intel virtual machine with 2 cores:"
    " 85k and 1.1M parameters, 2 to 32 replicas, a process for each of up to 16."
)

MEASURED = {
    "shm": Costs(loop=Line(0.33e-3, 0.21e-3), thread=Line(0.06e-3, 0.26e-3)),
    "tcp": Costs(loop=Line(0.87e-3, 0.68e-3), thread=Line(0.16e-3, 0.31e-3)),
}
