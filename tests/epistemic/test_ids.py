"""Which tokens are markers, and where the words stand in a text."""

from __future__ import annotations

from pathlib import Path

import pytest

from onpolicy.cli import main
from onpolicy.epistemic.ids import LexiconError, marker_ids
from onpolicy.models import load_tokenizer, resolve_model
from onpolicy.rewards.lexicon import LEXICONS, find
from tests.tiny import byte_tokenizer


def test_whole_markers_in_any_case_with_and_without_a_space() -> None:
    tokenizer = byte_tokenizer(added=("wait", " Wait", "WAIT", "Wait,", "waiting", "hm", "perhaps", "so"))
    names = lambda lexicon: {tokenizer.decode([i]) for i in marker_ids(tokenizer, lexicon)}  # noqa: E731
    assert names("paper10") == {"wait", " Wait", "WAIT", "perhaps"}
    assert names("neutral") == {"so"}


def test_the_end_token_of_a_published_tokenizer_may_be_a_marker(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a model gives up it says no word: a protection has to see its end."""
    monkeypatch.setitem(LEXICONS, "hedging_and_end", ("wait", "<|im_end|>"))
    tokenizer = load_tokenizer(resolve_model("smollm2-135m"))
    found = marker_ids(tokenizer, "hedging_and_end")
    assert tokenizer.convert_tokens_to_ids("<|im_end|>") in found
    assert {tokenizer.decode([i]).strip().casefold() for i in found} == {"wait", "<|im_end|>"}


@pytest.mark.parametrize(
    ("name", "words", "said"),
    [
        ("doubt", "[maybe, hold on]", "one token of this model, maybe; it does not read hold on"),
        ("single_words", "[maybe, perhaps]", ""),
    ],
)
def test_a_run_says_which_markers_its_loss_does_not_read(
    name: str, words: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The lab's tokenizer has a token for each word, and none for two."""
    weights = f"{{name: protect_markers, lexicon: {name}}}"
    command = [
        "train", "lab/self_distillation", f"custom_lexicons={{{name}: {words}}}", "epistemic.lexicons=[self_doubt]",
        "epistemic.lexicon=self_doubt",
        f"objective=[{{name: distill, divergence: forward_kl, token_weights: {weights}}}]", "steps=1", "eval.every=0",
        "data.prompts_per_step=1", "generator.group_size=2", f"run_dir={tmp_path / 'run'}",
    ]  # fmt: skip
    assert main(command) == 0
    told = " ".join(capsys.readouterr().out.split())
    assert said in told and ("does not read" in told) == bool(said)
    assert "lexicon 'self_doubt'" not in told, "no loss reads it"


def test_a_lexicon_without_a_token_and_an_unknown_one_are_refused() -> None:
    with pytest.raises(LexiconError, match="none of its markers is a single token"):
        marker_ids(byte_tokenizer(), "self_doubt")
    with pytest.raises(LexiconError, match="expected one of paper10"):
        marker_ids(byte_tokenizer(), "Z")


def test_where_the_words_stand() -> None:
    text = "Wait\u2014awaiting. I\u2019m not sure, hmmm; wait"
    assert [text[a:b] for a, b in find(text, "self_doubt")] == ["Wait", "I\u2019m not sure", "hmmm", "wait"]
    with pytest.raises(ValueError, match="lexicon: got 'Z'"):
        find(text, "Z")
