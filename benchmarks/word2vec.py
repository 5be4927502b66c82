"""Learn word vectors with gensim, in PyTorch's way, and in this project's.

Prints words per second of each contender, the ratios between them, how well the vectors
agree with people, and what a gradient message weighs. Nothing is asserted: figures
depend on the machine and on what else it does, which is printed too.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from measure import Spread, environment, run_contender
from report import table
from word_contenders import CONTENDERS, JUDGED, MIN_COUNT, SUBSAMPLE, WIDTH, WINDOW

from tensair_dask.exchange.accumulator import Changes
from tensair_dask.exchange.arena import Arena
from tensair_dask.exchange.clock import VectorClock
from tensair_dask.exchange.compression import make_compressor
from tensair_dask.exchange.gradient_sum import GradientSum
from tensair_dask.text.embeddings import SkipGram
from tensair_dask.text.reading import read_lines
from tensair_dask.text.samples import LENGTH, Sampler
from tensair_dask.text.tokens import tokenize
from tensair_dask.text.vocabulary import Vocabulary

# TensAIR's word2vec: two tables of 50,000 vectors of 300, dense on the wire.
TENSAIR_ROWS, TENSAIR_WIDTH, TENSAIR_BATCH = 50_000, 300, 2_048
TENSAIR_BYTES = 2 * TENSAIR_ROWS * TENSAIR_WIDTH * 4

RATIOS = (
    ("replicas-2", "gensim-2", 2.0),
    ("replicas-2", "tutorial", 5.0),
    ("replicas-2", "replicas-1", 1.6),
    ("replicas-1", "gensim-1", None),
)
WITHIN = 0.01


def prepared(text: str) -> str:
    """Give the words that all contenders see, a sentence a line."""
    tokens = tokenize(text)
    lines: list[list[str]] = [[] for _ in range(tokens.line_ends + 1)]
    for number, line in enumerate(tokens.lines.tolist()):
        lines[line].append(tokens.word(number))
    return "".join(" ".join(words) + "\n" for words in lines if words)


async def _read(source: str) -> str:
    return "".join([part async for part in read_lines(source)])


def messages(text: str) -> list[list[str]]:
    """Weigh what one step of TensAIR's setting sends, as rows and compressed."""
    vocabulary = Vocabulary(size=TENSAIR_ROWS, hashed=0, min_count=1)
    vocabulary.read(text)
    samples = Sampler(vocabulary, blocks=TENSAIR_BATCH // LENGTH).add(
        vocabulary.read(text)
    )
    step = next(iter(samples.steps(TENSAIR_BATCH // LENGTH)))
    model = SkipGram(TENSAIR_ROWS + 2, TENSAIR_WIDTH)
    model(
        words=torch.from_numpy(step.words),
        reach=torch.from_numpy(step.reach),
        negatives=torch.from_numpy(step.negatives),
    ).backward()
    rows = [_weigh("2,048 words as blocks, shared negatives", model)]
    rows += [_step_of_ours(text)]

    # As TensAIR makes them: each target with one context and four noise words of its
    # own; drawn as the tutorial of TensorFlow, from which its model is, draws them, or
    # from the distribution of the paper.
    random = np.random.default_rng(0)
    frequent_first = np.argsort(-vocabulary.counts, kind="stable")
    log_uniform = np.exp(random.random((TENSAIR_BATCH, 4)) * np.log(TENSAIR_ROWS + 1))
    ranks = np.minimum(log_uniform.astype(np.int64) - 1, len(vocabulary) - 1)
    drawn = {
        "log-uniform noise": frequent_first[ranks],
        "unigram**0.75 noise": random.choice(
            samples.negatives.ravel(), (TENSAIR_BATCH, 4)
        ),
    }
    words = torch.from_numpy(samples.words.ravel()).long()
    start = int(random.integers(len(words) - TENSAIR_BATCH - 1))
    targets = words[start : start + TENSAIR_BATCH]
    context = words[start + 1 : start + 1 + TENSAIR_BATCH]
    for says, chosen in drawn.items():
        model.zero_grad()
        noise = torch.from_numpy(chosen).long()
        u = model.words(targets)
        v = model.contexts(torch.cat([context[:, None], noise], 1))
        scores = torch.bmm(v, u.unsqueeze(2)).squeeze(2)
        right = torch.zeros(TENSAIR_BATCH, dtype=torch.long)
        torch.nn.functional.cross_entropy(scores, right).backward()
        rows.append(_weigh(f"2,048 targets, 1 + 4 contexts each, {says}", model))
    return rows


def _step_of_ours(text: str) -> list[str]:
    """Weigh a step as the contenders here make it, to see what conflation saves."""
    vocabulary = Vocabulary(hashed=0, min_count=MIN_COUNT)
    vocabulary.read(text)
    sampler = Sampler(vocabulary, WINDOW, subsample=SUBSAMPLE)
    step = next(iter(sampler.add(vocabulary.read(text)).steps(48)))
    model = SkipGram(vocabulary.rows, WIDTH)
    model(
        words=torch.from_numpy(step.words),
        reach=torch.from_numpy(step.reach),
        negatives=torch.from_numpy(step.negatives),
    ).backward()
    weighed = _weigh("(a step of the table above: 48 blocks, 100 wide)", model)
    return [cell if at in (0, 1, 2, 5) else "" for at, cell in enumerate(weighed)]


def _weigh(says: str, model: SkipGram) -> list[str]:
    arena = Arena(model)
    accumulator = GradientSum("run", "a", arena)
    gradients = [parameter.grad for parameter in arena.tables]
    accumulator.add(1, TENSAIR_BATCH, Changes([], gradients), VectorClock())
    message = accumulator.take()
    assert message is not None
    compressor = make_compressor("bfloat16")
    assert compressor is not None
    plain = message.nbytes
    half = compressor.compress(message.gradients).nbytes
    count = sum(len(part) for part in message.gradients.rows.values())
    return [
        says,
        f"{count:,}",
        f"{plain / 1e6:.2f}",
        f"1/{TENSAIR_BYTES / plain:.0f}",
        "yes" if plain <= TENSAIR_BYTES / 20 else "NO",
        f"{half / 1e6:.2f}",
        f"1/{TENSAIR_BYTES / half:.0f}",
        "yes" if half <= TENSAIR_BYTES / 40 else "NO",
    ]


def _spread(values: list[float], digits: int) -> list[str]:
    spread = Spread.of(values)
    low, high = f"{spread.low:,.{digits}f}", f"{spread.high:,.{digits}f}"
    return [f"{spread.median:,.{digits}f}", f"{low} to {high}"]


def render(data: dict[str, Any], markdown: bool) -> str:
    """Make tables of all rounds."""
    rounds = data["rounds"]

    def values(contender: str, key: str) -> list[float]:
        return [r[contender][key] for r in rounds if key in r.get(contender, {})]

    speeds = []
    for name, (says, _) in CONTENDERS.items():
        if not (rates := values(name, "words_per_second")):
            continue
        found = [values(name, judged) for judged in JUDGED]
        scores = [cell for f in found for cell in (_spread(f, 3) if f else ["", ""])]
        others = [r[name]["load"]["other_cores"] for r in rounds if name in r]
        speeds.append([says, *_spread(rates, 0), *scores, *_spread(others, 2)])
    ratios = []
    for ours, other, target in RATIOS:
        pairs = [
            r[ours]["words_per_second"] / r[other]["words_per_second"]
            for r in rounds
            if ours in r and other in r
        ]
        if pairs:
            met = "" if target is None else "yes"
            if target is not None and Spread.of(pairs).median < target:
                met = "NO"
            says = f"{CONTENDERS[ours][0]} / {CONTENDERS[other][0]}"
            wanted = "" if target is None else f">= {target}"
            ratios.append([says, *_spread(pairs, 2), wanted, met])
    quality = []
    for judged in JUDGED:
        gaps = [
            r["replicas-2"][judged] - r["gensim-2"][judged]
            for r in rounds
            if "replicas-2" in r and "gensim-2" in r
        ]
        if gaps:
            met = "yes" if Spread.of(gaps).median >= -WITHIN else "NO"
            quality.append([judged, *_spread(gaps, 3), f">= -{WITHIN}", met])
    keys = {
        "steps_per_message": 0,
        "rows_per_message": 0,
        "mb_per_message": 1,
        "bytes_per_step": 0,
        "age_p95_ms": 0,
        "staleness_mean": 0,
        "staleness_p95": 0,
        "client_cpu_us": 2,
        "replica_cpu_us": 2,
        "words_per_step": 0,
    }
    exchange = [
        [key.replace("_", " "), *_spread(values("replicas-2", key), digits)]
        for key, digits in keys.items()
        if values("replicas-2", key)
    ]
    judged_header = [cell for name in JUDGED for cell in (name, "range")]
    judged_against = ["median", "range", "target", "met"]
    header = ["contender", "words/s", "range", *judged_header, "other load", "range"]
    weights = ["a step of TensAIR's setting", "rows", "MB", "of 120 MB", "<= 1/20"]
    weights += ["bfloat16 MB", "of 120 MB", "<= 1/40"]
    return "\n".join(
        [
            json.dumps(data["environment"]),
            f"{data['words']:,} words, {data['passes']} passes, {len(rounds)} rounds",
            table("Words per second, and rank correlation", header, speeds, markdown),
            table(
                "Ratios",
                ["ratio", "median", "range", "target", "met"],
                ratios,
                markdown,
            ),
            table(
                "Two replicas minus gensim, rank correlation",
                ["set", *judged_against],
                quality,
                markdown,
            ),
            table("Two replicas", ["", "median", "range"], exchange, markdown),
            table("Weight of a message", weights, data["messages"], markdown),
        ]
    )


@click.command(help=__doc__)
@click.option("--text", required=True, help="A text; lines are sentences.")
@click.option("--passes", default=8, show_default=True)
@click.option("--rounds", default=5, show_default=True)
@click.option("--contenders", default=",".join(CONTENDERS), show_default=True)
@click.option("--json", "json_path", type=Path, help="Write all that was measured.")
@click.option("--markdown", is_flag=True, help="Tables in Markdown.")
def main(
    text: str,
    passes: int,
    rounds: int,
    contenders: str,
    json_path: Path | None,
    markdown: bool,
) -> None:
    import asyncio

    words = prepared(asyncio.run(_read(text)))
    names = contenders.split(",")
    data: dict[str, Any] = {
        "environment": environment(),
        "words": len(words.split()),
        "passes": passes,
        "messages": messages(words),
        "rounds": [],
    }
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "words.txt"
        file.write_text(words)
        for turn in range(rounds):
            click.echo(f"round {turn + 1} of {rounds}", err=True)
            answers = {}
            start = turn % len(names)
            for name in names[start:] + names[:start]:
                answer = run_contender(
                    name,
                    f"--text={file}",
                    f"--passes={passes}",
                    timeout=900,
                    script="word_contenders.py",
                )
                answers[name] = answer
                click.echo(
                    f"  {name:<11} {answer['words_per_second']:>11,.0f} words/s  other "
                    f"load {answer['load']['other_cores']:.2f}",
                    err=True,
                )
            data["rounds"].append(answers)
            if json_path is not None:
                json_path.write_text(json.dumps(data))
    click.echo(render(data, markdown))


if __name__ == "__main__":
    main()
