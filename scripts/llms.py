"""Writes docs/llms.txt (llmstxt.org): every page of the site, in the order of mkdocs.yml, with its title and what it begins with."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LONGEST = 200
"""Characters about a page, unless its first sentence is longer."""


def text() -> str:
    site: dict[str, Any] = yaml.safe_load((ROOT / "mkdocs.yml").read_text())
    parts = [f"# {site['site_name']}\n\n> {site['site_description']}\n"]
    for section in site["nav"]:
        ((name, pages),) = section.items()
        if isinstance(pages, list):  # the home page is README
            parts.append(f"\n## {name}\n\n" + "".join(line(page) for page in pages))
    return "".join(parts)


def line(page: str) -> str:
    """A page's link, title and first sentences."""
    path = DOCS / page
    if not path.exists():  # a notebook, which the site shows as a page
        path = path.with_suffix(".ipynb")
        cells = yaml.safe_load(path.read_text())["cells"]
        source = "".join(cells[0]["source"])
    else:
        source = path.read_text()
    title, _, rest = source.partition("\n")
    return f"- [{title.lstrip('# ')}]({path.relative_to(DOCS).as_posix()}): {beginning(rest)}\n"


def beginning(page: str) -> str:
    """The first sentences of a page's first paragraph, without marks and links."""
    page = re.sub(r"<!--.*?-->", "", page, flags=re.DOTALL).strip()
    paragraph = " ".join(page.partition("\n\n")[0].split())
    plain = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", paragraph).replace("**", "").replace("`", "")
    sentences = re.split(r"(?<=[.?:]) (?=[A-Z])", plain)
    said = sentences[0]
    for sentence in sentences[1:]:
        if len(said) + len(sentence) < LONGEST:
            said += f" {sentence}"
    return said


if __name__ == "__main__":
    print(text(), end="")
