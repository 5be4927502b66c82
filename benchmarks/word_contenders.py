"""Learn word vectors from a text in one way; prints what was measured as JSON.

The text is given ready: one sentence a line, words between spaces. gensim gets it as
lists of words, made beforehand, and its vocabulary, too; this project reads the text,
and makes its vocabulary, within the measured time.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil

WIDTH, WINDOW, NEGATIVES, MIN_COUNT, SUBSAMPLE = 100, 5, 5, 5, 1e-3
JUDGED = ("wordsim353", "simlex999")

# Batches that the tutorial's loop is measured over, and before that.
PAIRS, MEASURED, BEFORE = 1024, 1500, 100


def sentences(text: Path) -> list[list[str]]:
    return [line.split() for line in text.read_text().splitlines()]


def gensim(text: Path, passes: int, threads: int) -> dict[str, Any]:
    """Train gensim's skip-gram on lists of words."""
    from gensim.models import Word2Vec

    from tensair_dask.text.similarity import bundled

    told = sentences(text)
    model = Word2Vec(
        vector_size=WIDTH,
        window=WINDOW,
        negative=NEGATIVES,
        sample=SUBSAMPLE,
        min_count=MIN_COUNT,
        sg=1,
        workers=threads,
    )
    model.build_vocab(told)
    start = time.perf_counter()
    model.train(told, total_examples=model.corpus_count, epochs=passes)
    seconds = time.perf_counter() - start
    words = passes * sum(map(len, told))
    files = {"wordsim353": "wordsim353.tsv", "simlex999": "simlex999.txt"}
    return {
        "words_per_second": words / seconds,
        "vocabulary": len(model.wv),
        **{
            name: float(model.wv.evaluate_word_pairs(str(bundled(file)))[1][0])
            for name, file in files.items()
        },
    }


def tutorial(text: Path, passes: int) -> dict[str, Any]:
    """Train as PyTorch's tutorials do, in batches of pairs, with sparse=True.

    The pairs and the noise are made beforehand.
    """
    import torch
    from torch import nn

    from tensair_dask.text.samples import Sampler, reach_of
    from tensair_dask.text.vocabulary import Vocabulary

    torch.set_num_threads(1)
    vocabulary = Vocabulary(hashed=0, min_count=MIN_COUNT)
    read = vocabulary.read(text.read_text())
    made = Sampler(vocabulary, WINDOW, subsample=SUBSAMPLE).add(read)
    _, left, right = reach_of(WINDOW)
    centres, contexts = [], []
    for shift in range(-WINDOW, WINDOW + 1):
        reach = (left if shift < 0 else right)[made.reach]
        block, place = np.nonzero(reach >= abs(shift))
        if shift:
            centres.append(made.words[block, place])
            contexts.append(made.words[block, place + shift])
    order = np.random.default_rng(0).permutation(sum(map(len, centres)))
    pairs_per_word = len(order) / int(made.read.sum())
    wanted = (BEFORE + MEASURED) * PAIRS
    order = order[:wanted]
    batches = (BEFORE + MEASURED, PAIRS)
    centre = torch.from_numpy(np.concatenate(centres)[order].reshape(batches)).long()
    context = torch.from_numpy(np.concatenate(contexts)[order].reshape(batches)).long()
    noise = torch.from_numpy(
        np.random.default_rng(1).choice(made.negatives.ravel(), (*batches, NEGATIVES))
    ).long()

    class SkipGram(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.words = nn.Embedding(vocabulary.rows, WIDTH, sparse=True)
            self.contexts = nn.Embedding(vocabulary.rows, WIDTH, sparse=True)

        def forward(self, centre: Any, context: Any, noise: Any) -> Any:
            u, v, w = self.words(centre), self.contexts(context), self.contexts(noise)
            positive = nn.functional.logsigmoid((u * v).sum(1))
            scores = torch.bmm(w, u.unsqueeze(2)).squeeze(2)
            negative = nn.functional.logsigmoid(-scores).sum(1)
            return -(positive + negative).mean()

    model = SkipGram()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.025)
    start = 0.0
    for number in range(BEFORE + MEASURED):
        if number == BEFORE:
            start = time.perf_counter()
        optimizer.zero_grad()
        loss = model(centre[number], context[number], noise[number])
        loss.backward()
        optimizer.step()
        loss.item()
    seconds = time.perf_counter() - start
    return {"words_per_second": MEASURED * PAIRS / pairs_per_word / seconds}


def replicas(text: Path, passes: int, workers: int) -> dict[str, Any]:
    """Train with this project, from the text to the last drain."""
    return asyncio.run(_replicas(text, passes, workers))


async def _replicas(text: Path, passes: int, workers: int) -> dict[str, Any]:
    from distributed import Client, LocalCluster

    from tensair_dask.text.similarity import load_judged
    from tensair_dask.text.vocabulary import Vocabulary

    word2vec = importlib.import_module("tensair_dask.pipelines.word2vec")
    pieces = list(word2vec.pieces(text.read_text(), 1 << 15))
    vocabulary = Vocabulary(hashed=0, min_count=MIN_COUNT)
    done = 0

    def rate() -> float:
        return max(1 - done / len(pieces) / passes, 1e-3)

    async with (
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            host="127.0.0.1",
            dashboard_address="127.0.0.1:0",
            asynchronous=True,
        ) as cluster,
        Client(cluster, asynchronous=True) as client,
    ):
        pipeline = word2vec.build(
            client,
            vocabulary,
            width=WIDTH,
            window=WINDOW,
            negatives=NEGATIVES,
            subsample=SUBSAMPLE,
            rate=rate,
        )
        async with pipeline.trainer as trainer:
            # The first steps bring torch's kernels in, and are not measured.
            for piece in pieces[:10]:
                await pipeline.source.emit(piece)
            await pipeline.samples.flush()
            await trainer.drain()
            warm = pipeline.samples.words
            steps = sum(info.steps for info in trainer.replicas)
            before = await trainer.exchange_stats()
            pids = await client.run(os.getpid)
            cpu = [_cpu(None), *map(_cpu, pids.values())]
            start = time.perf_counter()
            for turn in range(passes):
                for piece in pieces if turn else pieces[10:]:
                    await pipeline.source.emit(piece)
                    done += 1
                vocabulary.frozen = True
            await pipeline.samples.flush()
            await trainer.drain()
            seconds = time.perf_counter() - start
            words = pipeline.samples.words - warm
            used = [_cpu(None), *map(_cpu, pids.values())]
            cpu = [(b - a) / words * 1e6 for a, b in zip(cpu, used, strict=True)]
            stats = await trainer.exchange_stats()
            steps = sum(info.steps for info in trainer.replicas) - steps
            agreement = {
                name: await pipeline.words.agreement(load_judged(name))
                for name in JUDGED
            }

    def summed(name: str) -> float:
        return sum(stats[a][name] - before[a][name] for a in stats)

    exchange = {}
    if workers > 1:
        sent, nbytes = summed("sent"), summed("sent_bytes")
        row = 4 + 4 * WIDTH
        exchange = {
            "steps_per_message": steps / sent,
            "mb_per_message": nbytes / sent / 1e6,
            "rows_per_message": nbytes / sent / row,
            "bytes_per_step": nbytes / steps,
            "age_p95_ms": 1e3 * max(each["age_p95"] for each in stats.values()),
            "staleness_mean": max(each["staleness_mean"] for each in stats.values()),
            "staleness_p95": max(each["staleness_p95"] for each in stats.values()),
        }
    return {
        "words_per_second": words / seconds,
        "words_per_step": words / steps,
        "vocabulary": len(vocabulary),
        "client_cpu_us": cpu[0],
        "replica_cpu_us": sum(cpu[1:]),
        **agreement,
        **exchange,
    }


def _cpu(pid: int | None) -> float:
    times = psutil.Process(pid).cpu_times()
    return times.user + times.system


CONTENDERS: dict[str, tuple[str, Callable[[Path, int], dict[str, Any]]]] = {
    "gensim-1": ("gensim, 1 thread", lambda t, p: gensim(t, p, 1)),
    "gensim-2": ("gensim, 2 threads", lambda t, p: gensim(t, p, 2)),
    "tutorial": ("PyTorch loop, sparse=True", tutorial),
    "replicas-1": ("tensair_dask, 1 replica", lambda t, p: replicas(t, p, 1)),
    "replicas-2": ("tensair_dask, 2 replicas", lambda t, p: replicas(t, p, 2)),
}


@click.command(help=__doc__)
@click.argument("contender", type=click.Choice(list(CONTENDERS)))
@click.option("--text", type=click.Path(exists=True, path_type=Path), required=True)
@click.option("--passes", default=8, show_default=True)
def main(contender: str, text: Path, passes: int) -> None:
    click.echo(json.dumps(CONTENDERS[contender][1](text, passes)))


if __name__ == "__main__":
    main()
