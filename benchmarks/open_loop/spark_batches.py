"""Spark Structured Streaming: `foreachBatch` learns each micro-batch on the driver."""

from __future__ import annotations

import os
from typing import Any

from pyspark.sql import SparkSession

from open_loop.learner import learn_here
from open_loop.wire import from_line


def _learn(frame: Any, number: int) -> None:
    for row in frame.collect():
        learn_here(*from_line(row.value))


def main() -> None:
    spark = (
        SparkSession.builder.master("local[2]")
        .config("spark.ui.enabled", "false")
        .config("spark.driver.bindAddress", "127.0.0.1")
        .config("spark.driver.host", "127.0.0.1")
        .getOrCreate()
    )
    lines = (
        spark.readStream.format("socket")
        .option("host", "127.0.0.1")
        .option("port", os.environ["OPEN_LOOP_DATA"])
        .load()
    )
    lines.writeStream.foreachBatch(_learn).start().awaitTermination()


if __name__ == "__main__":
    main()
