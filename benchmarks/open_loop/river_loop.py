"""River's way: deep-river's classifier learns data frames, in one process."""

from __future__ import annotations

import pandas as pd
import torch
from deep_river.classification import Classifier
from memory import keep_memory
from workloads import LEARNING_RATE

from open_loop.learner import workload
from open_loop.wire import Acks, data_socket, stream


def main() -> None:
    keep_memory()
    torch.set_num_threads(1)
    model = Classifier(
        module=workload().seeded_model(),
        loss_fn="cross_entropy",
        optimizer_fn="sgd",
        lr=LEARNING_RATE,
        output_is_logit=True,
    )
    acks = Acks()
    names = [str(i) for i in range(64)]
    for index, x, y in stream(data_socket()):
        model.learn_many(pd.DataFrame(x, columns=names), pd.Series(y))
        acks.learned(index, float("nan"))


if __name__ == "__main__":
    main()
