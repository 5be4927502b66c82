"""The pages that users read: README.md and docs/, and what is in them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
README = ROOT / "README.md"
PAGES = [README, *sorted(DOCS.rglob("*.md"))]

# Others, of which commands and links are looked at, too.
BESIDE = [ROOT / f"{name}.md" for name in ("ARCHITECTURE", "CONTRIBUTING")]
BESIDE += [ROOT / "benchmarks" / "README.md", *sorted(ROOT.glob("examples/*/*.md"))]


def name_of(page: Path) -> str:
    """Give the path of a page as people write it."""
    return page.relative_to(ROOT).as_posix()


def fenced(text: str) -> Iterator[tuple[str, str]]:
    """Give language and text of each fenced block; all may be indented."""
    pattern = r"^( *)```([\w{}-]*)[^\n]*\n(.*?)^\1```"
    for match in re.finditer(pattern, text, re.MULTILINE | re.DOTALL):
        yield match[2], match[3]
