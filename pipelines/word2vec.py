"""Learn word vectors from a stream of text, while it is read.

Lines of text become blocks of 32 words; replicas learn them with skip-gram or CBOW and
exchange how far the vectors have moved, as rows. The vocabulary grows with the stream.
While it learns, ask for neighbours; at any time, export what other programs load.

Run it with ``tensair run word2vec --text FILE`` or ``cat FILE | tensair run word2vec
--text -``. To start a pipeline of your own, copy this file: any streamz source of text
can stand where the file stands.
"""

from __future__ import annotations

import asyncio
import bz2
import dataclasses
import functools
import logging
import math
import time
from collections import deque
from collections.abc import (
    AsyncIterator,
    Callable,
    Collection,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from distributed import Client
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text
from streamz import Stream

import tensair_dask as ta
from tensair_dask._common.files import check_writable
from tensair_dask.exchange.compression import COMPRESSIONS
from tensair_dask.runner import terminal
from tensair_dask.runner.options import FILE, FROM_ZERO, POSITIVE, Number, option
from tensair_dask.runner.resume import Continuation
from tensair_dask.runner.run import Run, command
from tensair_dask.runner.summary import number_or_none
from tensair_dask.text.embeddings import CBOW, SkipGram, WordVectors
from tensair_dask.text.export import is_binary
from tensair_dask.text.reading import (
    STANDARD_INPUT,
    check_readable,
    read_lines,
    size_of,
)
from tensair_dask.text.samples import Sampler, Samples
from tensair_dask.text.similarity import Judged, bundled, load_judged
from tensair_dask.text.tokens import tokenize
from tensair_dask.text.vocabulary import Vocabulary
from tensair_dask.text.words import Words

logger = logging.getLogger(__name__)

MODELS: dict[str, type[WordVectors]] = {"skip-gram": SkipGram, "cbow": CBOW}

# A linear decay of the learning rate ends here, as in the original program.
LAST_RATE = 1e-3  # of the first one

# Shown where they are in the text, if no others were asked for.
PROBES = ("water", "music", "war", "city", "language", "king", "disease", "computer")

WIKIPEDIA = "enwiki-latest-pages-articles1.xml-p000000010p000030302-shortened.bz2"

# Characters that are read at once: worth the fixed cost of making samples, and few
# enough that what is made of them stays in the processor's cache.
ENOUGH = 1 << 15

# Of a text that are remembered, for a checkpoint to find the one where it stands: more
# than there can be between two mini-batches that are under way.
MOST_PLACES = 20_000

NAME = "word2vec"

# What bytes are read as that are no text.
REPLACED = "\ufffd"


# ------------------------------------------------------------------- text to samples


@Stream.register_api()
class samples(Stream):
    """Turn text into the mini-batches that one step is made with.

    Parameters
    ----------
    upstream
        Gives strings, or bytes of UTF-8 as sockets and topics do: a line each, or
        many lines.
    vocabulary
        Grows with what passes.
    sampler
        Made for that vocabulary.
    blocks
        Of a mini-batch; the same as the sampler's.
    timeout
        Seconds that a word waits for others before it is learned without them.
    rate
        Asked for the factor of the learning rate, from 1 down.

    Notes
    -----
    References in streamz ``metadata`` are held until all words that came with them
    have been learned.
    """

    def __init__(
        self,
        upstream: Stream,
        vocabulary: Vocabulary,
        sampler: Sampler,
        blocks: int = 48,
        timeout: float = 1.0,
        rate: Callable[[], float] = lambda: 1.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(upstream, ensure_io_loop=True, **kwargs)
        self._vocabulary = vocabulary
        self._sampler = sampler
        self._blocks = blocks
        self._timeout = timeout
        self._rate = rate
        self._texts: list[str] = []
        self._size = 0
        self._timer: asyncio.TimerHandle | None = None
        # References of what was read and is not, or only in part, in a mini-batch.
        self._new: list[Any] = []
        self._held: list[Any] = []
        self.words = 0
        # Texts that have come, and those of them that had when it last learned.
        self._taken = self._before = 0
        self._emitted = 0
        self._cut_short = False
        self.reached = Reached()

    def update(self, x: Any, who: Any = None, metadata: Any = None) -> Any:
        """Take text; the result is awaited where no replica has room."""
        if isinstance(x, bytes):
            x = x.decode(errors="replace")
        if not isinstance(x, str):
            raise ta.errors.BatchError(
                f"The stream gave a {type(x).__name__} where text should be: strings "
                "or bytes of one or many lines are needed. Put .map(parse) before."
            )
        metadata = metadata or []
        self._retain_refs(metadata)
        self._new += metadata
        self._taken += 1
        self._texts.append(x if x.endswith("\n") else x + "\n")
        self._size += len(x)
        if self._size >= ENOUGH:
            return self._learn(last=False)
        if self._timer is None:
            loop = self.loop.asyncio_loop
            self._timer = loop.call_later(self._timeout, self._time_is_up)
        return []

    def _time_is_up(self) -> None:
        self._timer = None
        asyncio.ensure_future(self._flush_late())

    async def _flush_late(self) -> None:
        try:
            await self.flush()
        except ta.errors.TensairError as error:  # there is no emit() to raise it
            logger.warning("The last words of a text were not learned: %s", error)

    async def flush(self) -> None:
        """Learn what has gathered, though it does not fill a mini-batch."""
        await self._learn(last=True)

    async def _learn(self, last: bool) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        texts, self._texts, self._size = self._texts, [], 0
        done, self._held, self._new = self._held, self._new, []
        carried = [*done, *self._held]
        complete, self._before = self._before, self._taken
        if last:
            done, self._held = carried, []
            complete = self._taken
        try:
            for made in self._samples_of(texts, last):
                for step in made.steps(self._blocks):
                    self._emitted += 1
                    for result in self._emit(self._batch(step), metadata=carried):
                        await result
            if not self._cut_short:
                self.reached.add(self._emitted, complete, self.words)
        except BaseException:
            self._cut_short = True  # some words of these texts are in no mini-batch
            raise
        finally:
            self._release_refs(done)

    def _samples_of(self, texts: Sequence[str], last: bool) -> Iterator[Samples]:
        for text in pieces("".join(texts), ENOUGH):
            yield self._sampler.add(self._vocabulary.read(text))
        if last:
            yield self._sampler.flush()

    def _batch(self, step: Samples) -> tuple[dict[str, np.ndarray], np.ndarray]:
        self.words += int(step.read.sum())
        x = {
            "words": step.words,
            "reach": step.reach,
            "negatives": step.negatives,
            "rate": np.full(len(step), self._rate(), np.float32),
        }
        return x, step.read


class Reached:
    """How many texts are learned when so many mini-batches are.

    Attributes
    ----------
    texts
        Those that need not be read again.
    words
        In them.
    """

    def __init__(self) -> None:
        self.texts = self.words = 0
        self._begins = 0
        self._places: deque[tuple[int, int, int]] = deque(
            [(0, 0, 0)], maxlen=MOST_PLACES
        )

    def add(self, batches: int, texts: int, words: int) -> None:
        """Take note: with so many mini-batches of this run, so many texts and words."""
        place = self._begins + batches, self.texts + texts, self.words + words
        if self._places[-1][0] == place[0]:
            self._places.pop()
        self._places.append(place)

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copy the state as a numpy array."""
        return {"places": np.array(self._places, np.int64)}

    def load_state_dict(self, state: Mapping[str, np.ndarray]) -> None:
        """Go on where that was of which this is the `state_dict`."""
        self._places.clear()
        self._places.extend(tuple(place) for place in state["places"].tolist())

    def rewind(self, batches: int) -> None:
        """Forget what comes after so many mini-batches: it comes again."""
        while len(self._places) > 1 and self._places[-1][0] > batches:
            self._places.pop()
        self._begins = batches
        _, self.texts, self.words = self._places[-1]


# ----------------------------------------------------------------------- the pipeline


@dataclass
class Pipeline:
    """What `build` wires: emit text into the source, and ask the words.

    Attributes
    ----------
    source
        Takes text; see `samples`.
    samples
        Makes mini-batches of them.
    reports
        One for each mini-batch; their ``samples`` count words of the text.
    trainer
        Learns them.
    words
        To ask, and to export.
    """

    source: Stream
    samples: samples
    reports: Stream
    trainer: ta.Trainer
    words: Words

    def drain(self) -> Any:
        """Wait until all that was emitted is learned and applied on every replica."""
        return self.trainer.client.sync(self._drain)

    async def _drain(self) -> None:
        await self.samples.flush()
        await self.trainer.drain()


def mean_loss(loss: torch.Tensor, read: torch.Tensor) -> torch.Tensor:
    """Pass on the loss, which the model computes itself."""
    return loss


def build(
    client: Client,
    vocabulary: Vocabulary | None = None,
    *,
    model: str = "skip-gram",
    width: int = 100,
    window: int = 5,
    negatives: int = 5,
    subsample: float = 1e-3,
    learning_rate: float = 0.03,
    blocks: int = 48,
    rate: Callable[[], float] = lambda: 1.0,
    replicas: int | None = None,
    compression: str = "none",
    staleness: str = "1s",
    seed: int = 0,
    continuation: Continuation | None = None,
) -> Pipeline:
    """Wire source, samples, trainer and words.

    Parameters
    ----------
    client
        Connected to a cluster.
    vocabulary
        None for a new one of 50,000 words.
    model
        ``"skip-gram"`` or ``"cbow"``.
    width, window, negatives
        Of the vectors; words to each side at most; for each pair.
    subsample
        Share of the text above which a word is left out at random.
    learning_rate
        Of plain SGD, for each pair. 0.03 is stable with one replica and with two,
        also if it never falls; with more replicas begin lower.
    blocks
        Of 32 words in a step. More in a step take less time a word and need a lower
        learning rate.
    rate
        Factor of the learning rate: something that falls from 1, or 1.
    replicas, compression, staleness, seed
        Of the `Trainer`. Rare words are touched seldom, so vectors may be exchanged
        less often than dense gradients.
    continuation
        Says where checkpoints are saved, and where the text goes on.

    Raises
    ------
    ConfigurationError
        If an argument is not allowed.
    """
    if model not in MODELS:
        raise ta.errors.ConfigurationError(
            f"model={model!r} was given; one of {', '.join(map(repr, MODELS))} is "
            "allowed."
        )
    if vocabulary is None:
        vocabulary = Vocabulary()
    continuation = continuation or Continuation()
    continuation.keep("vocabulary", vocabulary)
    trainer = ta.Trainer(
        client,
        model=functools.partial(
            MODELS[model], vocabulary.rows, width, window, negatives
        ),
        loss=mean_loss,
        optimizer=functools.partial(torch.optim.SGD, lr=learning_rate),
        # A sum of movements needs no learning rate at the receiver, and costs the
        # sender nothing at each step.
        share="update",
        replicas=replicas,
        compression=compression,
        staleness=staleness,
        seed=seed,
        name=NAME,
        **continuation.arguments(),
    )
    sampler = Sampler(vocabulary, window, blocks=blocks, subsample=subsample, seed=seed)
    source = Stream(asynchronous=client.asynchronous, loop=client.loop)
    made = source.samples(vocabulary, sampler, blocks=blocks, rate=rate)
    continuation.keep("text", made.reached)
    counts = _WordCounts(continuation.begins)
    made.sink(counts.expect)
    numbered = made.counted(continuation).train(trainer).map(continuation.numbered)
    reports = numbered.map(counts.in_words)
    return Pipeline(source, made, reports, trainer, Words(trainer, vocabulary))


class _WordCounts:
    """Lets reports tell how many words of text were learned, not how many blocks."""

    def __init__(self, begins: int) -> None:
        self._next = begins
        self._read: dict[int, int] = {}

    def expect(self, batch: tuple[Any, np.ndarray]) -> None:
        self._read[self._next] = int(batch[1].sum())
        self._next += 1

    def in_words(self, report: ta.Report) -> ta.Report:
        return dataclasses.replace(report, samples=self._read.pop(report.index))


# ---------------------------------------------------------------- on the command line


@dataclass
class WordsRun(Run):
    """A run over a text."""

    records: str = "words"
    text: str | None = option(
        None,
        "Text to learn, packed or not, here or at an address such as s3://...; - for "
        "standard input.",
        metavar="FILE|-",
        shown="a piece of Wikipedia that comes with gensim",
    )
    passes: int | None = option(
        None,
        "How often to go through the text, with a learning rate that falls to zero.",
        type=POSITIVE,
        shown="1; 10 for the piece of Wikipedia",
    )
    model: str = option(
        "skip-gram",
        "Predict the context of each word, or each word from its context.",
        type=click.Choice(MODELS),
    )
    width: int = option(100, "Of the vectors.", type=POSITIVE)
    context: int = option(
        5,
        "Words to each side that are context, at most.",
        "--window",
        type=click.IntRange(1, 31),
    )
    negatives: int = option(5, "Noise words for each pair.", type=POSITIVE)
    learning_rate: float = option(
        0.03,
        "For each pair; lower it for more than two replicas.",
        type=Number(min=0, min_open=True),
    )
    min_count: int = option(
        5,
        "How often a word must be seen to get a vector of its own.",
        type=POSITIVE,
    )
    size: int = option(
        50_000,
        "Words that can get a vector of their own.",
        "--vocabulary",
        type=POSITIVE,
    )
    hashed: int = option(
        5_000,
        "Vectors that all other words share; 0 leaves those words out.",
        type=FROM_ZERO,
    )
    compression: str = option(
        "none",
        "Of what the replicas exchange.",
        type=click.Choice([*COMPRESSIONS]),
    )
    probes: str | None = option(
        None,
        "Words whose neighbours are shown, with commas between.",
        metavar="WORDS",
        shown="a few nouns, or else what is frequent",
    )
    every: float = option(
        5.0, "Seconds between two looks at the neighbours.", type=Number(min=0.1)
    )
    evaluate: tuple[str, ...] = option(
        (),
        "Score against pairs of words judged by people: wordsim353, simlex999 (with "
        "gensim installed), or a file; may be repeated.",
        metavar="SET",
    )
    export: tuple[Path, ...] = option(
        (),
        "Write the vectors for gensim and others: binary if it ends in .bin, else "
        "text; packed if it ends in .gz, .bz2 or .xz; may be repeated.",
        type=FILE,
    )
    limit: int | None = option(
        None,
        "Stop after so many {records}, at the end of the 64 kB of text in which they "
        "are.",
        type=POSITIVE,
    )

    read: float = field(default=0.0, init=False)
    looks: list[dict[str, Any]] = field(default_factory=list, init=False)
    has_replaced: bool = field(default=False, init=False)

    def without_effect(self, given: Collection[str]) -> str:
        """Say which options would have no effect; see `Run.without_effect`."""
        if self.text == STANDARD_INPUT and self.repeats > 1:
            return (
                f"--text - was given with --passes {self.repeats}: standard input can "
                "be read once. Write it to a file, and give that: --text FILE."
            )
        if self.probes is not None and not probes_in(self.probes):
            return f"--probes {self.probes!r} has no word; give some, or leave it out."
        twice = [str(path) for path in self.export if self.export.count(path) > 1]
        if twice:
            return f"--export {twice[0]} was given twice; each file is written once."
        return super().without_effect(given)

    def check_files(self) -> None:
        """See that the vectors can be written, before they are learned."""
        super().check_files()
        for path in self.export:
            is_binary(path)
            check_writable(path, "--export")

    def result(self) -> dict[str, Any]:
        """Add words, steps and looks to what a script wants to know."""
        return super().result() | {
            "words": self.tally.records,
            "steps": self.tally.batches,
            "looks": [
                {
                    name: number_or_none(value) if isinstance(value, float) else value
                    for name, value in look.items()
                }
                for look in self.looks
            ],
        }

    @property
    def repeats(self) -> int:
        """Passes over the text."""
        return self.passes or (10 if self.text is None else 1)

    def remaining(self) -> float:
        """Factor of the learning rate: falls to zero where the end is known."""
        return max(1.0 - self.read, LAST_RATE)

    async def lines(self, vocabulary: Vocabulary, texts: int = 0) -> AsyncIterator[str]:
        """Read the text, as often as was asked for.

        Parameters
        ----------
        vocabulary
            Told when the text comes again.
        texts
            To leave out, since they are learned. Of a pipe none is: what comes there
            is new.
        """
        left_out = 0 if self.text == STANDARD_INPUT else texts
        limit = math.inf if self.limit is None else self.limit
        size = await asyncio.to_thread(self._size)
        words = characters = 0
        for number in range(self.repeats):
            # The second time round no word becomes more frequent.
            vocabulary.frozen = number > 0
            async for text in self._texts():
                words += count_words(text)
                characters += len(text)
                self._look_at(text)
                if size:
                    self.read = characters / size / self.repeats
                if limit < math.inf:
                    self.read = max(self.read, words / limit)
                if left_out:
                    left_out -= 1
                else:
                    yield text
                if words >= limit:
                    return

    def _look_at(self, text: str) -> None:
        """Say, once, that bytes of the text could not be read."""
        if REPLACED in text and not self.has_replaced:
            self.has_replaced = True
            origin = self.text if self.text != STANDARD_INPUT else "standard input"
            self.say(
                f"{origin} has bytes that are no UTF-8: they are read as {REPLACED}, "
                "which ends a word. If it is text of another encoding, convert it, for "
                "example with iconv -f LATIN1 -t UTF-8."
            )

    def _size(self) -> int | None:
        return len(wikipedia()) if self.text is None else size_of(self.text)

    async def _texts(self) -> AsyncIterator[str]:
        if self.text is not None:
            async for text in read_lines(self.text):
                yield text
            return
        lines = wikipedia().splitlines(keepends=True)
        for at in range(0, len(lines), 100):
            yield "".join(lines[at : at + 100])


def probes_in(text: str) -> list[str]:
    """Words of ``--probes``, as they are in a text."""
    tokens = tokenize(text)
    words = [tokens.word(number) for number in range(len(tokens.starts))]
    return list(dict.fromkeys(words))


def pieces(text: str, size: int) -> Iterator[str]:
    """Cut a text at line ends into pieces of about a size, or else at a space."""
    start = 0
    while len(text) - start > 2 * size:
        end = 1 + max(text.rfind("\n", start, start + size), -1)
        end = end if end > start else 1 + text.rfind(" ", start, start + size)
        end = end if end > start else start + size
        yield text[start:end]
        start = end
    yield text[start:]


def count_words(text: str) -> int:
    """Count roughly, for the pace."""
    return text.count(" ") + text.count("\n")


@functools.cache
def wikipedia() -> str:
    """Give the plain text of the articles that come with gensim: 480,000 words."""
    from gensim.corpora.wikicorpus import extract_pages, filter_wiki

    with bz2.open(bundled(WIKIPEDIA)) as file:
        pages = extract_pages(file, ("0",))
        return "\n".join(filter_wiki(text) for _, text, _ in pages)


class WordsView(terminal.RunView):
    """The live line: how far, how fast, loss, vocabulary, bytes exchanged."""

    run: WordsRun

    def __init__(self, run: WordsRun, trainer: Any, vocabulary: Vocabulary) -> None:
        super().__init__(run, trainer, 0)
        self._vocabulary = vocabulary
        self.bytes_per_step = math.nan

    def state(self) -> Text:
        """Words that were learned."""
        return Text(f"{self.run.tally.reached:,} words", style="bold")

    def counted(self, between: str = "") -> str:
        """Of a stream nobody knows how many words come."""
        return ""

    def share(self) -> float:
        """How much of the text was read, where its end is known."""
        return self.run.read

    def measured(self) -> Iterator[str]:
        """Vocabulary and exchange."""
        yield f"vocabulary {len(self._vocabulary):,}"
        if not math.isnan(self.bytes_per_step):
            yield f"exchanged {self.bytes_per_step / 1e3:,.1f} kB a step"


class Looks:
    """Looks at the neighbours of some words, and at how people judge them.

    Parameters
    ----------
    run
        Told what was seen.
    pipeline
        Asked.
    vocabulary
        Where probes are chosen from, if none were given.
    judged
        Sets to score against.
    view
        Told how many bytes were exchanged.
    """

    def __init__(
        self,
        run: WordsRun,
        pipeline: Pipeline,
        vocabulary: Vocabulary,
        judged: Sequence[Judged],
        view: WordsView,
    ) -> None:
        self._run = run
        self._pipeline = pipeline
        self._vocabulary = vocabulary
        self._judged = judged
        self._view = view
        self._given = probes_in(run.probes or "")
        self._began = time.monotonic()

    @asynccontextmanager
    async def now_and_then(self) -> AsyncIterator[None]:
        """Look every few seconds, as long as the block lasts."""
        looking = asyncio.ensure_future(self._look_again_and_again())
        try:
            yield
        finally:
            looking.cancel()
            await asyncio.wait({looking})

    async def _look_again_and_again(self) -> None:
        while True:
            await asyncio.sleep(self._run.every)
            try:
                await self.look()
            except ta.errors.TensairError as error:  # it goes on learning
                self._run.say(f"No look at the neighbours: {error}")

    async def look(self) -> None:
        """Ask a replica, and tell what it said."""
        words = self._pipeline.words
        seen: dict[str, Any] = {
            "seconds": time.monotonic() - self._began,
            "words": self._run.tally.reached,
            "loss": self._run.tally.loss(),
            "vocabulary": len(self._vocabulary),
        }
        for judged in self._judged:
            seen[judged.name] = await words.agreement(judged)
        seen["neighbours"] = {
            word: await words.most_similar(word, 6) for word in self._probes()
        }
        if unknown := [word for word in self._given if word not in self._vocabulary]:
            seen["unknown"] = unknown
        await self._measure_exchange(seen)
        self._run.looks.append(seen)
        self._run.console.print(self._table(seen))

    async def _measure_exchange(self, seen: dict[str, Any]) -> None:
        trainer = self._pipeline.trainer
        stats = list((await trainer.exchange_stats()).values())
        steps = self._run.tally.batches
        if len(stats) > 1 and steps:
            sent = sum(each["sent_bytes"] for each in stats)
            seen["bytes_per_step"] = self._view.bytes_per_step = sent / steps
            seen["staleness"] = max(each["staleness_mean"] for each in stats)

    def _probes(self) -> list[str]:
        known = self._vocabulary
        if self._given:
            return [word for word in self._given if word in known]
        nouns = [word for word in PROBES if word in known]
        if len(nouns) >= 3:
            return nouns[:5]
        order = np.argsort(-known.counts[1 : 1 + len(known)], kind="stable")
        # The most frequent words of a language are short and say little.
        frequent = (known.words[at] for at in order)
        return [word for word in frequent if len(word) > 4][:5]

    def _why_none(self) -> str:
        known = self._vocabulary
        text = f"no vector of its own: seen fewer than {known.min_count} times"
        return text + (", or when the vocabulary was full") * (len(known) >= known.size)

    def _table(self, seen: dict[str, Any]) -> RenderableType:
        title = f"after {seen['seconds']:.0f} s, {seen['words']:,} words"
        if not math.isnan(seen["loss"]):
            title += f", loss {seen['loss']:.3f}"
        for judged in self._judged:
            title += f", {judged.name} {seen[judged.name]:.3f}"
        table = Table.grid(padding=(0, 1))
        for word, neighbours in seen["neighbours"].items():
            near = "  ".join(f"{other} {cosine:.2f}" for other, cosine in neighbours)
            text = Text(near, style="dim", no_wrap=True, overflow="ellipsis")
            table.add_row("", Text(word, style="bold"), text)
        for word in seen.get("unknown", ()):
            table.add_row("", Text(word, style="bold"), Text(self._why_none()))
        return Group(Text(title), table)


@command(WordsRun)
async def main(run: WordsRun) -> None:
    """Learn word vectors from a text while it is read."""
    judged = [load_judged(source) for source in run.evaluate]
    vocabulary = Vocabulary(run.size, run.hashed, run.min_count)
    if run.text is None:
        run.say("Unpacking the piece of Wikipedia that comes with gensim")
        await asyncio.to_thread(wikipedia)
    else:
        await asyncio.to_thread(check_readable, run.text)
    await run.go_on(
        NAME,
        text=run.text or "of gensim",
        passes=run.repeats,
        model=run.model,
        width=run.width,
        window=run.context,
        negatives=run.negatives,
        min_count=run.min_count,
        vocabulary=run.size,
        hashed=run.hashed,
    )
    async with run.client() as client:
        pipeline = build(
            client,
            vocabulary,
            model=run.model,
            width=run.width,
            window=run.context,
            negatives=run.negatives,
            learning_rate=run.learning_rate,
            rate=run.remaining,
            replicas=run.workers,
            compression=run.compression,
            continuation=run.continuation,
        )
        reached = pipeline.samples.reached
        run.tally.before = reached.words
        lines = run.lines(vocabulary, reached.texts)
        async with run.training(pipeline.trainer) as trainer:
            view = WordsView(run, trainer, vocabulary)
            looks = Looks(run, pipeline, vocabulary, judged, view)
            with run.watch(trainer, pipeline.reports, view):
                async with looks.now_and_then():
                    await run.feed(pipeline.source, lines, count_words)
                    await pipeline.drain()
            await finish(run, pipeline, looks)


async def finish(run: WordsRun, pipeline: Pipeline, looks: Looks) -> None:
    """Look once more, export, and tell what was done."""
    if run.has_results:
        await looks.look()
        for path in run.export:
            await pipeline.words.save(path)
            kind = path.suffix.lstrip(".") or "text"
            run.files[path.name if kind in run.files else kind] = str(path)
    elif run.export:
        run.say("Nothing was learned; no vectors are written.")
        return
    run.show()


if __name__ == "__main__":
    main()
