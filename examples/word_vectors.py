"""Stream a text into word vectors, ask for neighbours meanwhile, load them in gensim.

Run it with a text of your own, or without one for a piece of Wikipedia::

    python examples/word_vectors.py novel.txt

The text is emitted line by line, as it would come from a socket or a topic; whatever
gives text can stand in its place: ``Stream.from_kafka``, ``Stream.from_tcp``,
``Stream.from_textfile``.
"""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

from dask.distributed import Client, LocalCluster

from tensair_dask.pipelines.word2vec import build, wikipedia
from tensair_dask.text.vocabulary import Vocabulary

PASSES = 6


def main() -> None:
    """Learn, ask, export, and load."""
    text = Path(sys.argv[1]).read_text() if len(sys.argv) > 1 else wikipedia()
    lines = text.splitlines()
    vocabulary = Vocabulary(size=20_000)
    done = 0

    def rate() -> float:
        """Fall from 1 to 0, because this text ends. Leave it out if yours does not."""
        return 1 - done / (PASSES * len(lines))

    with (
        LocalCluster(n_workers=2, threads_per_worker=1) as cluster,
        Client(cluster) as client,
    ):
        pipeline = build(client, vocabulary, rate=rate)
        losses: list[float] = []
        pipeline.reports.sink(lambda report: losses.append(report.loss))
        with pipeline.trainer:
            for number in range(PASSES):
                vocabulary.frozen = number > 0  # a repeated word is not more frequent
                for line in lines:
                    pipeline.source.emit(line)
                    done += 1
                probe = "water" if "water" in vocabulary else vocabulary.words[50]
                near = pipeline.words.most_similar(probe, 5)
                print(
                    f"{pipeline.samples.words:,} words",
                    f"vocabulary {len(vocabulary):,}",
                    f"loss {statistics.mean(losses[-50:]):.2f}",
                    f"{probe}: {', '.join(word for word, _ in near)}",
                    sep="  ",
                )
            pipeline.drain()
            pipeline.words.save("word-vectors.bin")

    from gensim.models import KeyedVectors

    vectors = KeyedVectors.load_word2vec_format("word-vectors.bin", binary=True)
    print(f"gensim has loaded {len(vectors):,} vectors of {vectors.vector_size}")


if __name__ == "__main__":
    main()
