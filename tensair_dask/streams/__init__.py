"""The streamz operators: `train`, `predict`, `predict_then_train` and `try_map`.

Their names are loaded when they are first used: the changes to streamz, which lie here
as well, are imported on Dask's scheduler, which must not pay for torch.
"""

from __future__ import annotations

import importlib
from typing import Any

__all__ = ["predict", "predict_then_train", "train", "try_map"]


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{name}_node"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
