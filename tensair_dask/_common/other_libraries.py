"""Habits: what is called otherwise in other libraries, and what to call here."""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable
from typing import ParamSpec, TypeVar

from tensair_dask.errors import CallError, NoSuchMethodError

__all__ = ["checked_call", "no_such_argument", "no_such_method"]

Given = ParamSpec("Given")
Result = TypeVar("Result")

_TRAIN = (
    "stream.train(trainer) learns a stream; trainer.train(x, y) one mini-batch: for "
    "x, y in loader: trainer.train(x, y)"
)
_OPTIMIZER = (
    "optimizer= is called with the parameters, and has it: "
    "optimizer=functools.partial(torch.optim.SGD, lr=0.05)"
)
_REPLICAS = "give replicas=, how many copies of the model learn"
_REPORTS = (
    "stream.train(trainer).sink(function) calls it with the report of each mini-batch; "
    "trainer.history and trainer.curves are tables of them"
)
_EVALUATE = "trainer.evaluate([(x, y), ...]) scores held-out mini-batches"
_LIVE = "trainer.monitor() shows how training goes"
_CHECKPOINTS = "give checkpoint_to=, a folder, and checkpoint_every="

# What other libraries call an argument.
ARGUMENTS = {
    **dict.fromkeys(
        ("epochs", "max_epochs", "num_epochs", "n_epochs"),
        "a stream has no epochs: each mini-batch is learned once, when it comes. To go "
        "over data several times give it several times: for _ in range(epochs): for x, "
        "y in loader: trainer.train(x, y)",
    ),
    **dict.fromkeys(
        ("batch_size", "batchsize"),
        "mini-batches are as they are given; of single records "
        "stream.partition(64, timeout=0.1).train(trainer) makes them",
    ),
    **dict.fromkeys(
        ("lr", "learning_rate", "momentum", "weight_decay", "optim"), _OPTIMIZER
    ),
    **dict.fromkeys(
        ("criterion", "loss_fn", "loss_function"), "give loss=, a function of both"
    ),
    **dict.fromkeys(
        ("scheduler", "lr_scheduler"),
        "give schedule=, which follows the number of gradients on all replicas",
    ),
    **dict.fromkeys(
        ("grad_clip", "max_grad_norm", "gradient_clip_val", "clip_norm"),
        "give clip_gradients=, which acts before anything is shared",
    ),
    **dict.fromkeys(
        ("n_workers", "num_workers", "workers", "world_size", "n_replicas"), _REPLICAS
    ),
    **dict.fromkeys(("callbacks", "callback"), _REPORTS),
    **dict.fromkeys(
        ("validation_data", "val_data", "validation_split", "valid_loader"), _EVALUATE
    ),
    **dict.fromkeys(
        ("checkpoint", "checkpoint_dir", "checkpoint_path", "save_dir"), _CHECKPOINTS
    ),
    **dict.fromkeys(("verbose", "progress_bar", "progress"), _LIVE),
    **dict.fromkeys(
        ("patience", "early_stopping"),
        "mode='auto' learns until the loss has converged, and again after a drift",
    ),
    "shuffle": "a stream is learned in the order in which it comes",
    "random_state": "give seed=",
}

# What other libraries call a method or an attribute.
METHODS = {
    **dict.fromkeys(
        ("fit", "partial_fit", "fit_generator", "fit_one", "learn", "learn_one"), _TRAIN
    ),
    **dict.fromkeys(("learn_many", "step", "train_step", "train_on_batch"), _TRAIN),
    **dict.fromkeys(
        ("update", "emit"), "emit into the stream: source.train(trainer), source.emit"
    ),
    **dict.fromkeys(
        ("forward", "transform", "predict_proba", "predict_many"),
        "trainer.predict(x) gives what the model returns for a mini-batch",
    ),
    **dict.fromkeys(("score", "test", "validate", "eval"), _EVALUATE),
    **dict.fromkeys(
        ("model", "module", "parameters", "named_parameters", "weights"),
        "the model lives on the workers: trainer.state_dict() copies its parameters, "
        "trainer.apply(function) changes it",
    ),
    **dict.fromkeys(
        ("load", "load_state_dict", "load_checkpoint", "resume"),
        "ta.Trainer.restore(path, client, ...) goes on from a checkpoint; of a "
        "state_dict, trainer.apply(lambda model, optimizers: "
        "model.load_state_dict(state))",
    ),
    "save_checkpoint": "trainer.save(path) writes one",
    **dict.fromkeys(("to", "cuda", "cpu"), "give Trainer(device=...) at the start"),
    **dict.fromkeys(
        ("stop", "shutdown", "end", "finish", "terminate"),
        "trainer.drain() waits for all that was given, trainer.close() ends it",
    ),
    **dict.fromkeys(
        ("wait", "join", "flush", "synchronize"),
        "trainer.drain() waits for all that was given",
    ),
    **dict.fromkeys(("loss", "losses", "log", "logs", "loss_history"), _REPORTS),
    **dict.fromkeys(
        ("optimizer", "optimizers", "lr", "learning_rate"),
        "trainer.apply(lambda model, optimizers: ...) changes them on all replicas",
    ),
    **dict.fromkeys(("workers", "world_size"), "trainer.replicas tells of them"),
}


# Settings of groups of an optimizer, by their names there.
_SETTINGS = ("lr", "momentum", "weight_decay", "betas", "eps", "dampening", "alpha")
_OF_OPTIMIZERS = {name: name for name in _SETTINGS} | {"learning_rate": "lr"}


def no_such_method(thing: object, name: str) -> NoSuchMethodError:
    """Say that there is no such attribute, and which does what it is looked for for."""
    kind = type(thing).__name__
    if name.startswith("_"):  # asked for by programs, such as a notebook
        return NoSuchMethodError(f"{kind} has no attribute {name!r}.")
    known = [each for each in dir(type(thing)) if not each.startswith("_")]
    return NoSuchMethodError(
        f"{kind} has no attribute {name!r}{_instead(name, METHODS, known)}"
    )


def no_such_setting(name: str) -> str | None:
    """Say what to do in the place of setting an attribute; None of any other name."""
    if name in _OF_OPTIMIZERS:
        own = _OF_OPTIMIZERS[name]
        return (
            "trainer.apply(lambda model, optimizers: "
            f"optimizers[0].param_groups[0].update({own}=...)) changes it on all "
            "replicas; schedule= lets rates follow the number of gradients"
        )
    return METHODS.get(name) or ARGUMENTS.get(name)


def no_such_argument(call: str, name: str, known: Iterable[str]) -> CallError:
    """Say that a call has no such argument, and which it has in its place."""
    return CallError(
        f"{call} has no argument {name!r}{_instead(name, ARGUMENTS, known)}"
    )


def _instead(name: str, habits: dict[str, str], known: Iterable[str]) -> str:
    if advice := habits.get(name):
        return f": {advice}."
    alike = difflib.get_close_matches(name, list(known), 1, 0.75)
    return f"; did you mean {alike[0]!r}?" if alike else "."


def checked_call(
    call: str, advice: str = ""
) -> Callable[[Callable[Given, Result]], Callable[Given, Result]]:
    """Let a method tell of arguments that it has not, or lacks, as a typed error.

    Parameters
    ----------
    call
        Its name, for people.
    advice
        How it is called, for those who left something out.
    """

    def decorate(function: Callable[Given, Result]) -> Callable[Given, Result]:
        signature = inspect.signature(function)

        @functools.wraps(function)
        def checked(*args: Given.args, **kwargs: Given.kwargs) -> Result:
            for name in kwargs:
                if name not in signature.parameters:
                    raise no_such_argument(call, name, signature.parameters)
            try:
                signature.bind(*args, **kwargs)
            except TypeError as error:
                ending = f" {advice}" if advice else ""
                raise CallError(f"{call}: {error}.{ending}") from None
            return function(*args, **kwargs)

        return checked

    return decorate
