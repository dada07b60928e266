"""The shape of the code.

1. Packages import downwards, lazy and type-only imports included; no circles between files. 2. A fixed set of files stands
at the top. 3. Importing the package, its types, config or rewards loads nothing heavy; importing a loss loads torch alone.
4. The loop fits one screen; files, functions and classes stay small. 5. No public name is defined twice. 6. Nothing branches
on a plug-in's name. 7. Engines are imported where they run. 8. House words do not come back.
"""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "onpolicy"
FILES = sorted(p for p in PACKAGE.rglob("*.py") if not p.is_relative_to(PACKAGE / "rewards"))
REWARDS = sorted((ROOT / "rewards").rglob("*.py"))
ENGINES = ("vllm", "deepspeed", "ray", "verl", "hydra")
HEAVY = ("torch", "transformers", "datasets", "pandas", "math_verify", "sympy", "reasoning_gym", *ENGINES)

TOP = {"__init__", "__main__", "cli", "train", "types", "protocols", "models", "contracts"}
BASE = {"types", "utils", "rewards"}
ALLOWED: dict[str, set[str]] = {
    "types": set(),
    "utils": set(),
    "protocols": {"types"},
    "config": BASE,
    "data": BASE,
    "losses": {"types", "utils", "config"},
    "epistemic": BASE | {"config"},
    "models": {"utils", "config", "data"},
    "rollout": {"types", "utils", "protocols", "config", "data", "models"},
    "annotation": BASE | {"protocols", "config", "data", "models", "epistemic"},
    "trainer": {"types", "utils", "protocols", "config", "data", "models", "losses", "epistemic"},
    "contracts": {"types", "rewards", "utils", "config", "losses", "annotation"},
    "train": {"types", "protocols", "run"},
}
"""Package, or file at the top -> what any of its files may import, besides itself."""
ALLOWED["distributed"] = BASE | {"protocols", "config", "data", "models", "rollout", "annotation", "trainer"}
ALLOWED["run"] = set(ALLOWED) | BASE
ALLOWED["experiments"] = ALLOWED["run"] | {"run"}
ALLOWED["integrations"] = ALLOWED["experiments"] | {"experiments"}
ALLOWED["cli"] = ALLOWED["integrations"] | {"integrations", "__init__"}
ALLOWED["__main__"] = {"cli"}

WHERE_ENGINES_RUN = {
    "vllm": ("rollout/vllm_",),
    "deepspeed": ("trainer/deepspeed.py", "trainer/process_group.py", "trainer/zero3.py"),
    "ray": ("distributed/", "experiments/sweep/ray_runs.py", "integrations/verl/"),
    "verl": ("integrations/verl/",),
    "hydra": ("integrations/verl/",),
}
HOUSE_WORDS = re.compile(
    r"(?i)(?<![a-z])(crew|seat|garbage|parcels?|duty|duties|hopeless|spelled|bones|askers?|taught|judged?|planted|inquiry)(?![a-z])"
)
"""Words that this project once had for things that the field has names for."""


def loaded_by(statements: Iterable[str]) -> dict[str, set[str]]:
    """Statement -> top-level packages that it loads in a fresh process; one process forks for all of them."""
    code = (
        "import os, sys\n"
        "for statement in sys.argv[1:]:\n"
        "    if not os.fork():\n"
        "        exec(statement)\n"
        "        print(statement, *{m.partition('.')[0] for m in sys.modules}, sep='\\t', flush=True)\n"
        "        os._exit(0)\n"
        "    assert os.wait()[1] == 0, statement\n"
    )
    command = [sys.executable, "-c", code, *statements]
    out = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return {line.split("\t")[0]: set(line.split("\t")[1:]) for line in out.splitlines()}


LIGHT = (
    "onpolicy", "onpolicy.types", "onpolicy.protocols", "onpolicy.models", "onpolicy.cli", "onpolicy.config.schema",
    "onpolicy.config.resolve", "onpolicy.config.registry", "onpolicy.data", "onpolicy.utils.thinking", "onpolicy.utils.seeds",
    "onpolicy.annotation.annotate", "onpolicy.annotation.credit", "onpolicy.annotation.contexts.successful_sibling",
    "onpolicy.rewards", "onpolicy.rewards.base", "onpolicy.rewards.answer", "onpolicy.rewards.lexicon", "rewards",
)  # fmt: skip
TORCH_ALONE = (
    "onpolicy.losses.divergences", "onpolicy.losses.supports", "onpolicy.losses.objective", "onpolicy.losses.terms.distill",
    "onpolicy.losses.terms.policy_gradient", "onpolicy.losses.terms.teacher_advantage", "onpolicy.trainer.chunked_head",
    "onpolicy.trainer.collate", "onpolicy.trainer.teacher_rules",
)  # fmt: skip


@pytest.mark.process
def test_light_imports() -> None:
    loaded = loaded_by(f"import {module}" for module in LIGHT)
    assert {statement: found & set(HEAVY) for statement, found in loaded.items() if found & set(HEAVY)} == {}


@pytest.mark.process
def test_a_loss_loads_torch_alone() -> None:
    for statement, found in loaded_by(f"import {module}" for module in TORCH_ALONE).items():
        assert "torch" in found, statement
        assert not found & (set(HEAVY) - {"torch", "sympy"}), statement  # torch brings sympy along


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def package_of(module: str) -> str:
    """``onpolicy.run.launch`` -> ``run``; ``onpolicy.types`` -> ``types``; ``onpolicy`` -> ``__init__``."""
    return [*module.split("."), "__init__"][1]


def imports_of(path: Path) -> Iterator[str]:
    """Every module that the file names in an import, at the top, inside a function, or for types alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_packages_import_downwards(path: Path) -> None:
    own = package_of(module_of(path))
    if own == "__init__":  # the lazy Python interface; what it loads is tested above
        return
    named = {package_of(name) for name in imports_of(path) if name.startswith("onpolicy.")}
    above = named - {own} - ALLOWED[own]
    assert not above, (
        f"{path.relative_to(ROOT)} imports {', '.join(sorted(above))}; {own} may import {sorted(ALLOWED[own])}"
    )


@pytest.mark.parametrize("path", REWARDS, ids=lambda p: p.name)
def test_rewards_import_nothing_of_onpolicy(path: Path) -> None:
    assert not [name for name in imports_of(path) if name.startswith(("onpolicy", "rewards"))]


def test_only_these_files_stand_at_the_top() -> None:
    assert {p.stem for p in PACKAGE.glob("*.py")} == TOP


def test_no_circles() -> None:
    modules = {module_of(p): p for p in FILES}
    graph = {
        name: {
            found
            for found in imports_of(path)
            if found in modules and found != name and modules[found].stem != "__init__"
        }
        for name, path in modules.items()
    }
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " -> ".join([*trail[trail.index(name) :], name])
        if name not in done:
            for other in sorted(graph[name]):
                visit(other, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_engines_are_imported_where_they_run(path: Path) -> None:
    relative = str(path.relative_to(PACKAGE))
    engines = {name.partition(".")[0] for name in imports_of(path)} & set(ENGINES)
    allowed = {engine for engine, places in WHERE_ENGINES_RUN.items() if relative.startswith(places)}
    assert engines <= allowed


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def lines(node: ast.FunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_files_and_functions_stay_small() -> None:
    every = [*FILES, *REWARDS]
    lengths = {f"{p.relative_to(ROOT)}:{f.name}": lines(f) for p in every for f in functions(p)}
    assert not [name for name, n in lengths.items() if n > 60]
    ordered = sorted(lengths.values())
    assert ordered[len(ordered) // 2] < 12
    assert not [p.name for p in every if len(p.read_text().splitlines()) > 420]


def classes() -> Iterator[tuple[Path, ast.ClassDef]]:
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef):
                yield path, node


def is_plug_in(path: Path, node: ast.ClassDef) -> bool:
    """Named in the tables of built-in plug-ins: its parameters are the options of the config."""
    from onpolicy.config.builtins import TABLES

    return any(f"{module_of(path)}:{node.name}" in table.values() for table in TABLES.values())


def test_classes_stay_small() -> None:
    large: dict[str, int] = {}
    for path, node in classes():
        methods = [f for f in node.body if isinstance(f, ast.FunctionDef | ast.AsyncFunctionDef)]
        fields = [f for f in node.body if isinstance(f, ast.AnnAssign)]
        init = next((f for f in methods if f.name == "__init__"), None)
        parameters = 0 if init is None else len(init.args.args) - 1 + len(init.args.kwonlyargs)
        counts = {"methods": (len(methods), 18), "fields": (len(fields), 16), "parameters": (parameters, 8)}
        if node.name == "Config":  # a whole run
            counts.pop("fields")
        if is_plug_in(path, node):
            counts.pop("parameters")
        large |= {f"{node.name} {what}": n for what, (n, most) in counts.items() if n > most}
    assert large == {}


def test_public_names_are_defined_once() -> None:
    """Plug-ins apart: each kind has its own namespace in a config."""
    from onpolicy.config.builtins import TABLES

    plug_ins = {target for table in TABLES.values() for target in table.values()}
    interface = {
        "train",
        "build_objective",
    }  # onpolicy.train and onpolicy.build_objective are called as what they lead to
    where: dict[str, set[str]] = defaultdict(set)
    for path in FILES:
        for node in ast.parse(path.read_text()).body:
            if (
                not isinstance(node, ast.ClassDef | ast.FunctionDef)
                or node.name.startswith("_")
                or node.name in interface
            ):
                continue
            if f"{module_of(path)}:{node.name}" not in plug_ins:
                where[node.name].add(module_of(path))
    assert {name: sorted(modules) for name, modules in where.items() if len(modules) > 1} == {}


def test_the_loop_fits_a_screen() -> None:
    (loop,) = functions(PACKAGE / "train.py")
    assert loop.name == "train" and lines(loop) < 40


def test_nothing_branches_on_a_plug_ins_name() -> None:
    from onpolicy.config.builtins import TABLES

    known = {name for table in TABLES.values() for name in table} - {
        "none",
        "file",
        "full",
        "hub",
        "auto",
    }  # words that other options have too
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                constants = {
                    c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)
                }
                assert not constants & known, f"{path.name}:{node.lineno} compares with {constants & known}"


def identifiers(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield node.name
        elif isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Attribute):
            yield node.attr


def words(identifier: str) -> str:
    """``ActorPool`` and ``actor_pool`` as words between underscores."""
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", identifier)


@pytest.mark.parametrize("path", [*FILES, *REWARDS], ids=lambda p: str(p.relative_to(ROOT)))
def test_house_words_do_not_come_back(path: Path) -> None:
    assert sorted({name for name in identifiers(path) if HOUSE_WORDS.search(words(name))}) == []


@pytest.mark.parametrize("path", [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))], ids=lambda p: p.name)
def test_texts_use_the_fields_words(path: Path) -> None:
    assert not re.findall(r"(?i)\b(start model|wanted|share right|right share)\b", path.read_text())


def test_every_error_for_users_has_the_base_class() -> None:
    """What the command line prints in one line is a ``UserError``; the class says it, no list of names does."""
    from onpolicy.utils import errors

    assert inspect.isclass(errors.UserError)
    source = (PACKAGE / "cli.py").read_text()
    assert "UserError" in source and not re.search(r'"\w+Error",\s*"\w+Error"', source)


def test_these_tests_can_fail(tmp_path: Path) -> None:
    """The rules find what they are there to find."""
    bad = tmp_path / "bad.py"
    bad.write_text("def f():\n    from onpolicy.run.launch import crew\n\n    return crew.seat\n")
    assert "onpolicy.run.launch" in set(imports_of(bad))
    assert [name for name in identifiers(bad) if HOUSE_WORDS.search(words(name))] == ["seat", "crew"] or {
        name for name in identifiers(bad) if HOUSE_WORDS.search(words(name))
    } == {"seat", "crew"}
    assert HOUSE_WORDS.search(words("ActorCrew")) and not HOUSE_WORDS.search(words("screwed"))
