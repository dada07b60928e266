"""Completion of the command line in a shell, by shtab: commands, options, names of shipped configs, files."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

from onpolicy.utils.errors import UserError

SHELLS = ("bash", "zsh", "tcsh")
CONFIGS: Mapping[str, str] = {"bash": "_onpolicy_configs", "zsh": "_onpolicy_configs", "tcsh": "f"}
"""Completes the name of a shipped config, or a file; tcsh knows files alone."""
FILES: Mapping[str, str] = {"bash": "_shtab_compgen_files", "zsh": "_files", "tcsh": "f"}
BASH = """
_onpolicy_configs() {{
  compgen -W "{names}" -- "$1"
  compgen -f -X '!*.y*ml' -- "$1"
  compgen -d -S / -- "$1"
}}
"""
ZSH = """
_onpolicy_configs() {{
  _alternative 'configs:config:({names})' 'files:file:_files'
}}
"""


class NoCompletion(UserError, ImportError):
    """shtab is not installed; names the command that installs it."""


def completion_script(parser: argparse.ArgumentParser, shell: str, configs: Sequence[str]) -> str:
    """What a shell evaluates to complete the parser's commands.

    Args:
        parser: arguments with an attribute ``complete`` are completed by what it names for the shell
        shell: one of ``SHELLS``
        configs: names of the shipped configs

    Raises:
        NoCompletion: shtab is not installed.
    """
    try:
        import shtab
    except ImportError as error:
        raise NoCompletion("completion needs the package shtab: pip install shtab") from error
    names = " ".join(configs)
    preamble = {"bash": BASH.format(names=names), "zsh": ZSH.format(names=names)}
    script: str = shtab.complete(parser, shell=shell, preamble=preamble)
    return script
