"""The shape of the code.

1. importing the package, its config, types or rewards loads nothing heavy; importing a loss loads torch alone; 2. heavy
packages are imported in backends only; 3. rewards import nothing of onpolicy, and rooms import one way; 4. the loop fits
a screen; files and functions stay small; 5. nothing of one method's name is branched on.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FILES = sorted([*(ROOT / "onpolicy").rglob("*.py"), *(ROOT / "rewards").rglob("*.py")])
ENGINES = ("vllm", "deepspeed", "ray", "verl", "hydra")
HEAVY = ("torch", "transformers", "datasets", "pandas", "math_verify", "sympy", "reasoning_gym", *ENGINES)


def loaded_by(statement: str) -> set[str]:
    """Top-level packages in a fresh process after the statement."""
    code = f"{statement}\nimport sys\nprint(*{{m.partition('.')[0] for m in sys.modules}})"
    return set(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
        ).stdout.split()
    )


@pytest.mark.process
@pytest.mark.parametrize(
    "module",
    ["onpolicy", "onpolicy.types", "onpolicy.protocols", "onpolicy.config.schema", "onpolicy.config.resolve",
     "onpolicy.config.registry", "onpolicy.data", "onpolicy.utils.thinking",
     "onpolicy.annotation.credit", "onpolicy.data.subset", "onpolicy.annotation.contexts.successful_sibling",
     "onpolicy.cli", "onpolicy.models", "onpolicy.annotation.build", "onpolicy.rollout.build", "onpolicy.run.evaluate",
     "rewards", "onpolicy.rewards.base", "onpolicy.rewards.answer", "onpolicy.rewards.lexicon"],
)  # fmt: skip
def test_light_imports(module: str) -> None:
    assert not loaded_by(f"import {module}") & set(HEAVY)


@pytest.mark.process
@pytest.mark.parametrize(
    "module",
    ["onpolicy.losses.divergences", "onpolicy.losses.supports", "onpolicy.trainer.chunked_head",
     "onpolicy.losses.objective", "onpolicy.trainer.collate",
     "onpolicy.losses.terms.distill", "onpolicy.losses.terms.policy_gradient", "onpolicy.losses.terms.teacher_advantage",
     "onpolicy.trainer.teacher_rules"],
)  # fmt: skip
def test_a_loss_loads_torch_alone(module: str) -> None:
    found = loaded_by(f"import {module}")
    assert "torch" in found and not found & (set(HEAVY) - {"torch", "sympy"})  # torch brings sympy along


def imports_of(path: Path, *, top_level_only: bool = False) -> set[str]:
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_one_way(path: Path) -> None:
    relative = path.relative_to(ROOT)
    names = imports_of(path)
    if relative.parts[0] == "rewards":
        assert not any(name.startswith("onpolicy") for name in names)
        return
    if relative.parts[1] != "backends":
        top = {name.partition(".")[0] for name in imports_of(path, top_level_only=True)}
        assert not top & set(ENGINES), "engines are imported in backends, or inside a function"
    if relative.parts[1] in ("distill", "contexts", "objectives", "data"):
        rooms = {name.split(".")[1] for name in names if name.startswith("onpolicy.")}
        allowed = {
            "distill": {"distill", "types", "sharding"},
            "contexts": {"contexts", "thinking", "types"},
            "objectives": {"distill", "objectives", "types"},
            "data": {"data", "types"},
        }
        assert rooms <= allowed[relative.parts[1]], f"{relative} looks into {rooms - allowed[relative.parts[1]]}"


def functions(path: Path) -> list[ast.FunctionDef]:
    return [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.FunctionDef)]


def lines(node: ast.FunctionDef) -> int:
    assert node.end_lineno is not None
    return node.end_lineno - node.lineno + 1


def test_files_and_functions_stay_small() -> None:
    lengths = {f"{p.relative_to(ROOT)}:{f.name}": lines(f) for p in FILES for f in functions(p)}
    assert not [name for name, n in lengths.items() if n > 60]
    ordered = sorted(lengths.values())
    assert ordered[len(ordered) // 2] < 12
    assert not [p.name for p in FILES if len(p.read_text().splitlines()) > 420]


def test_the_loop_fits_a_screen() -> None:
    (loop,) = functions(ROOT / "onpolicy" / "train.py")
    assert loop.name == "train" and lines(loop) < 40


def test_nothing_branches_on_a_plug_ins_name() -> None:
    from onpolicy.config.registry import TABLES

    known = {name for table in TABLES.values() for name in table} - {"none", "file", "full", "hub"}
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Compare):
                constants = {
                    c.value for c in ast.walk(node) if isinstance(c, ast.Constant) and isinstance(c.value, str)
                }
                assert not constants & known, f"{path.name}:{node.lineno} compares with {constants & known}"
