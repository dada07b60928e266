"""Where a user's own function stands, for those who name it in another way than ``module:function``."""

from __future__ import annotations

import re
from pathlib import Path


def own_function(name: str) -> str:
    """`` rewards.py defines it: write 'rewards:my_reward'.`` where a file of the current folder defines a function, or nothing.

    Args:
        name: what the config gives, e.g. ``my_reward``, ``rewards.py:my_reward``, ``rewards.my_reward``
    """
    function = re.split(r"[:.]", name)[-1]
    if not function.isidentifier():
        return ""
    defines = re.compile(rf"^(?:async +)?(?:def|class) +{function}\b", flags=re.MULTILINE)
    for file in sorted(Path.cwd().glob("*.py")):
        found = f"{file.stem}:{function}"
        if found != name and file.stem.isidentifier() and defines.search(file.read_text("utf-8", "replace")):
            return f" {file.name} defines it: write {found!r}."
    return ""


def why_not_imported(module: str, error: BaseException) -> str:
    """Why a user's module could not be imported: it is nowhere, or where in it an error was raised."""
    if isinstance(error, ModuleNotFoundError) and error.name is not None and f"{module}.".startswith(f"{error.name}."):
        file = Path(*module.split(".")).with_suffix(".py")
        return f"there is no {file} in {str(Path.cwd())!r}, and no installed package of that name."
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error}"
    trace, place = error.__traceback__, ""
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if file.stem == module.rpartition(".")[2]:
            place = f" ({file.name}, line {trace.tb_lineno})"
        trace = trace.tb_next
    if isinstance(error, SystemExit):
        return f"it ends the program while it is imported, sys.exit({error.code!r}){place}"
    return f"{type(error).__name__}: {error}{place}"
