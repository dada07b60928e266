"""The quickstart: it names only what exists, and its sets are what they are called; a step of it learns."""

from __future__ import annotations

from onpolicy.config.resolve import load_resolved
from onpolicy.data.rendering import Renderer
from onpolicy.experiments.lab.problem import AGAIN, TRY
from onpolicy.models import open_model
from onpolicy.rewards import lexicon
from onpolicy.run.check_run import check_run
from onpolicy.run.loading import evaluation_prompts, training_prompts
from onpolicy.types import Prompt


def problems(*overrides: str) -> tuple[list[Prompt], dict[str, list[Prompt]]]:
    resolved = load_resolved("quickstart", overrides)
    renderer: Renderer = open_model(resolved).renderer
    return training_prompts(resolved, renderer), evaluation_prompts(resolved, renderer)


def ids(prompts: list[Prompt]) -> set[str]:
    return {prompt.id for prompt in prompts}


def test_it_could_start() -> None:
    resolved = check_run("quickstart")
    assert resolved.config.model.path == "lab-reasoner" and resolved.config.eval.every


def test_in_domain_is_what_it_trains_on_and_nothing_else_is() -> None:
    """At every seed, and however many problems there are: the set follows ``data.coverage``."""
    for overrides in ((), ("seed=3",), ("data.coverage.problems=3",)):
        trained, sets = problems(*overrides)
        assert ids(sets["in_domain"]) == ids(trained)
        others = set().union(*(ids(found) for name, found in sets.items() if name != "in_domain"))
        assert not ids(trained) & others and len(others) == sum(len(s) for n, s in sets.items() if n != "in_domain")
    assert ids(problems()[0]) != ids(problems("seed=3")[0])


def test_its_markers_are_counted() -> None:
    """The words that begin and follow an attempt are in the lexicon that the run follows."""
    followed = load_resolved("quickstart").config.epistemic.lexicon
    assert {*TRY, *AGAIN} <= set(lexicon.words_of(followed))
