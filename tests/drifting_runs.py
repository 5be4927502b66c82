"""Records of runs that drifted."""

from __future__ import annotations

import numpy as np
import pandas as pd

LENGTH = 2_000


CHANGES = {1_000: "3 ↔ 7", 1_500: "2 ↔ 8"}


def rows() -> pd.DataFrame:
    """It learns, settles at 400, meets a change at 1,000, and settles again."""
    index = np.arange(LENGTH)
    loss = 0.1 + 2 * np.exp(-(index % 1_000) / 50)
    learned = (index < 400) | ((index >= 1_010) & (index < 1_400))
    accuracy = 1 - loss / 3
    return pd.DataFrame(
        {"index": index, "loss": loss, "learned": learned, "accuracy": accuracy}
    )
