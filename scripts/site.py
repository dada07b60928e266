"""What mkdocs does besides, for the site of the docs (mkdocs.yml): hooks that it calls by name.

The pages are written to be read on a code host: anchors are made as there, and links lead to files anywhere in the repository. Such files
are put into the site under ``source/``.
"""

from __future__ import annotations

import json
import posixpath
import re
import shutil
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(\]\()((?!\w+:)[^)#\s]+)")
FENCE = re.compile(r"^(`{3,})", re.MULTILINE)
LIST = re.compile(r"(?:[-*]|\d+\.) ")


def slug(text: str, separator: str) -> str:
    """The anchor of a heading, as code hosts make it."""
    return re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", separator)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    config.mdx_configs.setdefault("toc", {})["slugify"] = slug
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """The home page, the notebook as a page, and the files outside of docs/ to which pages link."""
    files.append(File.generated(config, "index.md", content=(ROOT / "README.md").read_text()))
    for notebook in DOCS.rglob("*.ipynb"):
        name = notebook.relative_to(DOCS).with_suffix(".md").as_posix()
        files.append(File.generated(config, name, content=notebook_page(notebook)))
    waiting = list(files.documentation_pages())
    while waiting:
        page = waiting.pop()
        for path in targets(page):
            if files.get_file_from_path(in_site(path)) is None:
                found = ROOT / path
                content = found.read_text() if found.suffix == ".md" else found.read_bytes()
                files.append(file := File.generated(config, in_site(path), content=content))
                waiting += [file] if file.is_documentation_page() else []
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    folder = posixpath.dirname(page.file.src_uri) or "."

    def led(match: re.Match[str]) -> str:
        target = place(page.file, match[2])
        return match[1] + (posixpath.relpath(in_site(target), folder) if target else match[2])

    return with_room(LINK.sub(led, markdown))


def on_post_build(config: MkDocsConfig) -> None:
    """The pages as they are written, beside those of the site: what llms.txt points to."""
    for page in DOCS.rglob("*.md"):
        shutil.copyfile(page, Path(config.site_dir, page.relative_to(DOCS)))


def notebook_page(notebook: Path) -> str:
    """The cells of a notebook in Markdown, and where to get it."""
    cells: list[dict[str, Any]] = json.loads(notebook.read_text())["cells"]
    texts = ["".join(cell["source"]) for cell in cells]
    shown = [f"```python\n{t}\n```" if c["cell_type"] == "code" else t for c, t in zip(cells, texts, strict=True)]
    heading, *rest = shown
    title, _, lead = heading.partition("\n")
    return "\n\n".join([title, f'<a href="{notebook.name}">This page as a notebook</a>.{lead}', *rest])


def place(file: File, target: str) -> str | None:
    """A link's target as a path in the repository, of a folder its README or first file; None where the link is to be left as it is."""
    path = posixpath.normpath(posixpath.join(posixpath.dirname(in_repository(file.src_uri)), target))
    if (ROOT / path).is_dir():
        inside = sorted(each.name for each in (ROOT / path).iterdir() if each.is_file())
        path = posixpath.join(path, "README.md" if "README.md" in inside else inside[0])
    return path if (ROOT / path).is_file() else None


def in_repository(page: str) -> str:
    """A page's path in the site -> in the repository."""
    if page == "index.md":
        return "README.md"
    return page.removeprefix("source/") if page.startswith("source/") else f"docs/{page}"


def in_site(path: str) -> str:
    """A path in the repository -> in the site, where a notebook is a page."""
    if path == "README.md":
        return "index.md"
    return path.removeprefix("docs/").replace(".ipynb", ".md") if path.startswith("docs/") else f"source/{path}"


def targets(page: File) -> set[str]:
    """The files of the repository to which a page links."""
    return {path for _, target in LINK.findall(page.content_string) if (path := place(page, target))}


def with_room(markdown: str) -> str:
    """A blank line before each list that follows a paragraph, which Python-Markdown needs and code hosts do not."""
    lines: list[str] = []
    fenced = False
    for line in markdown.splitlines():
        fenced ^= bool(FENCE.match(line.lstrip()))
        before = lines[-1] if lines else ""
        if not fenced and LIST.match(line) and before and not before.startswith(" ") and not LIST.match(before):
            lines.append("")
        lines.append(line)
    return "\n".join(lines)
