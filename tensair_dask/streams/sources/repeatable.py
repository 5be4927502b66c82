"""Whether an iterable gives the same items again, so that a position counts them."""

from __future__ import annotations

from typing import Any

__all__ = ["why_not_repeatable"]

# Samplers of torch that draw the order of their items.
_SHUFFLE = ("RandomSampler", "SubsetRandomSampler", "WeightedRandomSampler")

_ADVICE = (
    "Seed the order anew before each run: DataLoader(data, shuffle=True, "
    "generator=torch.Generator().manual_seed(0)), with a generator that nothing has "
    "drawn from yet; or begin without positions=, as a pass of its own"
)


def why_not_repeatable(items: Any) -> str:
    """Say why what is iterated anew would come in another order; empty if it may not.

    Parameters
    ----------
    items
        What a source was given. torch is not imported for it.
    """
    if isinstance(items, (set, frozenset)):
        return (
            f"a {type(items).__name__} has no order that holds from one program to the "
            "next. Give a list, such as sorted(items)"
        )
    for sampler in _samplers(items):
        kinds = {kind.__name__ for kind in type(sampler).__mro__}
        if kinds.isdisjoint(_SHUFFLE):
            continue
        name = type(sampler).__name__
        generator = getattr(sampler, "generator", None)
        if generator is None:
            return f"its {name} draws another order in each pass. {_ADVICE}"
        if _is_used(generator):
            return (
                f"the generator of its {name} has been drawn from, so that the order "
                f"is not that of a first pass. {_ADVICE}"
            )
    return ""


def _samplers(items: Any) -> list[Any]:
    """Give the samplers of a DataLoader."""
    batches = getattr(items, "batch_sampler", None)
    found = (
        getattr(items, "sampler", None),
        batches,
        getattr(batches, "sampler", None),
    )
    return [each for each in found if each is not None]


def _is_used(generator: Any) -> bool:
    """Whether a generator of torch is no longer as its seed has made it."""
    try:
        fresh = type(generator)(device=generator.device)
        fresh.manual_seed(generator.initial_seed())
        return not bool((fresh.get_state() == generator.get_state()).all())
    except Exception:  # one of another kind: it is not known
        return False
