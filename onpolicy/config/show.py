"""``onpolicy show`` and ``onpolicy list``: every option and every name."""

from __future__ import annotations

import dataclasses

from rich.console import Console
from rich.table import Table

from onpolicy.config.builtins import TABLES
from onpolicy.config.options import SECTION_OF, find_options, options, summary_of
from onpolicy.config.registry import find_function
from onpolicy.config.shipped import config_summary, shipped_configs
from onpolicy.utils.errors import ConfigError, suggest
from onpolicy.utils.terminal import plain, print_json, print_next

CONFIGS = "configs"
"""What ``onpolicy list`` calls the shipped configs."""


def show(text: str, as_markdown: bool, as_json: bool) -> int:
    """Prints docs/configuration.md, or in two lines each all options, or those that a text means.

    Raises:
        ConfigError: it means none.
    """
    if as_markdown:
        print(markdown())
        return 0
    found = find_options(text) if text else list(options())
    if as_json:
        print_json([dataclasses.asdict(option) for option in found])
        return 0
    console = Console(highlight=False, soft_wrap=True)
    for option in found:
        written = option.default.replace("\n", "\\n")  # one line, whatever the text
        default = f" = {plain(written)}" if written else ""
        console.print(f"[bold]{plain(option.key)}[/bold]: {plain(option.type)}{default}")
        console.print("    " + plain(option.meaning), f"[dim]{plain(option.source)}[/dim]")
    if not text:
        print_next(["show", "warm up"], ["list"])
    return 0


def print_names(kind: str | None, as_json: bool) -> int:
    """Prints the names of one kind of plug-in with what each is, those of all kinds, or the shipped configs."""
    if kind not in (None, CONFIGS, *TABLES):
        kinds = [CONFIGS, *TABLES]
        raise ConfigError(f"unknown kind {kind!r}.{suggest(str(kind), kinds)} Kinds: {', '.join(kinds)}.")
    found = {each: _meanings_of(each) for each in ([kind] if kind else TABLES)}
    if as_json:
        print_json(found)
        return 0
    console = Console()
    for each, names in found.items():
        table = Table(
            title=None if each == CONFIGS else f"{each}  [dim]{SECTION_OF.get(each, each)}[/dim]",
            title_justify="left",
            box=None,
            pad_edge=False,
            show_header=False,
        )
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for name, meaning in names.items():
            table.add_row(plain(name if each == CONFIGS else f"  {name}"), plain(meaning))
        console.print(table)
        console.print()
    if kind != CONFIGS:
        console.print("[dim]Your own function: write `module:function` where a name stands (docs/extending.md).[/dim]")
    usual = ["list", "configs"] if kind is None else ["check", "quickstart"]
    print_next(usual if kind in (None, CONFIGS) else ["show", SECTION_OF.get(str(kind), str(kind))])
    return 0


def _meanings_of(kind: str) -> dict[str, str]:
    """Name -> what it is, of the shipped configs or of a kind of plug-in."""
    if kind == CONFIGS:
        return {name: config_summary(path) for name, path in shipped_configs().items()}
    return {name: summary_of(find_function(kind, name, kind)) for name in TABLES[kind]}


def markdown() -> str:
    """docs/configuration.md."""
    lines = [
        "# Configuration",
        "",
        "<!-- written by `onpolicy show --markdown`; a test keeps it in step with the code -->",
        "",
        "A YAML file holds what differs from the defaults; `key=value` on the command line overrides it, and",
        "`objective[0].weight=2` reaches into lists. A section with a `name` chooses a plug-in and takes that plug-in's options",
        "(without options the name is enough: `teacher: frozen`);",
        "`module:function` in place of a name is your own. `onpolicy check FILE` validates without loading a model;",
        "with `--full` it prints every option.",
        "",
        "Where an option is text, it is the text as it stands: `run_dir=12:30`, `model.revision=0123456`, `'run_dir=exp #2'`,",
        "`'data.prompt_template=Q: {problem}'`; only quotes around all of it are taken away. (In a file YAML ends a text at ` #` and",
        "takes `Q: {problem}` for a mapping: quote it there.) Where an option is a number, `010` is 10 and `1e-6` is 0.000001. `null`,",
        "or nothing after `=`, is no value.",
        "",
        "| key | default | meaning | source |",
        "| --- | --- | --- | --- |",
    ]
    for option in options():
        cells = (f"`{option.key}`", f"`{option.default}`", option.meaning.replace("|", "\\|"), f"`{option.source}`")
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "## Names", ""]
    for kind, table in TABLES.items():
        lines += [f"### {kind} (`{SECTION_OF.get(kind, kind)}`)", "", "| name | what it is |", "| --- | --- |"]
        for name in table:
            what = summary_of(find_function(kind, name, kind)).replace("|", "\\|")
            lines.append(f"| `{name}` | {what} |")
        lines.append("")
    return "\n".join(lines)
