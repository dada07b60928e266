"""The blocks of the guide's pages, as a reader takes them: files that are written, commands that are typed, Python that is run.

- A block of csv, YAML or Python is the file that the text right above it names last, in backticks. YAML without a name is a part of a
  config; Python without one is run, all of a page in one namespace.
- A block of sh is typed. ``<!-- tests: WORDS -->`` above it is what tests put behind its commands, so that a run is short; ``<!-- checked,
  not run: REASON -->`` is for what needs a GPU, a cluster, the hub or packages.
- A block without a language, right below one of sh, is among what that one prints; numbers may differ.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GUIDE = Path(__file__).parent.parent / "docs" / "guide"
GUIDE_PAGES = sorted(GUIDE.glob("*.md"))
FILES = {"csv": "csv", "yaml": "yaml", "python": "py"}
"""Languages of blocks that may be files -> the ending of their names."""
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
MARK = re.compile(r"<!-- (tests|checked, not run): (\S.*) -->\n\Z")
LIKE_AN_OPTION = re.compile(r"--[\w-]+")


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    language: str
    text: str
    name: str
    """Of the file that it is; empty where it is none."""
    added: str
    """What tests put behind its commands."""
    not_run: str
    """Why it is checked and not run; empty where it is run."""

    def commands(self) -> list[list[str]]:
        """Its lines of shell as words, with comments left out."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]

    def typed(self) -> list[list[str]]:
        """The commands as tests type them: an option or a setting that is added takes the place of the page's."""
        added = shlex.split(self.added)
        given = {_key(word) for word in added}
        return [[*_without(words, given), *added] for words in self.commands()]


def _key(word: str) -> str:
    return word if LIKE_AN_OPTION.fullmatch(word) else word.partition("=")[0] if "=" in word else ""


def _without(words: list[str], keys: set[str]) -> list[str]:
    """A command without these settings, and without these options and what follows each."""
    kept: list[str] = []
    for before, word in zip(["", *words], words, strict=False):
        if not ({_key(word), before if LIKE_AN_OPTION.fullmatch(before) else "-"} & (keys - {""})):
            kept.append(word)
    return kept


def blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page in order."""
    text, end = page.read_text(), 0
    for match in BLOCK.finditer(text):
        above, end = text[end : match.start()], match.end()
        mark = MARK.search(above)
        kind, words = (mark[1], mark[2]) if mark else ("", "")
        ending = FILES.get(match[1])
        paragraph = above.rstrip().rpartition("\n\n")[2]
        names = re.findall(rf"`([\w-]+\.{ending})`", paragraph) if ending and paragraph.endswith((":", ".")) else []
        yield Block(
            language=match[1],
            text=match[2],
            name=names[-1] if names else "",
            added=words if kind == "tests" else "",
            not_run=words if kind == "checked, not run" else "",
        )


def masked(text: str) -> str:
    """A text without its numbers, frames and line breaks: what stays the same from machine to machine."""
    return " ".join(re.sub(r"[-+]?\d[\d.,]*(e[-+]?\d+)?", "N", re.sub(r"[│┃╭╰─]", " ", text)).split())
