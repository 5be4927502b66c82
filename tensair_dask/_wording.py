"""Texts of bounded length: what user code raises may hold a whole record."""

from __future__ import annotations

__all__ = ["LONGEST", "bounded", "in_words"]

# Characters of a message: it is sent, logged, and kept with what was refused.
LONGEST = 4000

# Of what user code raised, within such a message: there is room for advice then.
_LONGEST_CAUSE = 2000


def bounded(text: str, most: int = LONGEST) -> str:
    """Cut the middle out of a text that is too long, and say how much that was."""
    if len(text) <= most:
        return text
    start, end = most * 2 // 3, most // 3 - 50
    left_out = len(text) - start - end
    return f"{text[:start]} [... {left_out:,} characters left out ...] {text[-end:]}"


def in_words(error: BaseException) -> str:
    """Give type and text of what user code raised, of bounded length; never raises."""
    kind = type(error).__name__
    try:
        text = str(error)
    except BaseException as of_text:
        return f"{kind}: (no text, since its __str__ raised {type(of_text).__name__})"
    return f"{kind}: {bounded(text, _LONGEST_CAUSE)}" if text else kind
