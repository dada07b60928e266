"""What a model can read and where it ends: tokens without embeddings, windows and vocabularies of teachers, ends of its generation config.

Runs are real, with tiny models in folders.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from onpolicy.cli import main
from onpolicy.config.resolve import load_resolved
from onpolicy.models import end_ids, open_model
from onpolicy.rollout.build import local_generator
from onpolicy.types import Message, Prompt
from onpolicy.utils.errors import ModelError
from tests.runs import run_here, write_config
from tests.tiny import byte_tokenizer, tiny_model

GLM = "{% for m in messages %}<|{{ m['role'] }}|>\n{{ m['content'] }}{% endfor %}{% if add_generation_prompt %}<|assistant|>\n{% endif %}"
ENDS = ("<|user|>", "<|assistant|>", "<|observation|>")


def model_dir(folder: Path, tokenizer: Any = None, *, vocab_size: int = 264, window: int = 1024, seed: int = 0) -> Path:
    model = tiny_model(vocab_size=vocab_size, seed=seed)
    model.config.max_position_embeddings = window
    model.save_pretrained(folder)
    (tokenizer or byte_tokenizer()).save_pretrained(folder)
    return folder


def set_ends(folder: Path, ends: Any) -> None:
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": ends}))


# ---- a tokenizer larger than the embedding


@pytest.mark.parametrize(
    ("vocab_size", "added", "special", "refused"),
    [
        (264, tuple(f"<extra_{i}>" for i in range(12)), (), "<extra_"),
        (264, tuple(f"<extra_{i}>" for i in range(5)), (), None),
        (258, (), (), "."),
        (259, (), ("<image>",), None),
        (259, (), ("<written>",), "<written>"),
    ],
    ids=["added tokens", "they fit", "ordinary tokens", "a special token that nothing writes", "one that the template writes"],
)  # fmt: skip
def test_tokens_without_embeddings_are_refused_when_the_model_is_read(
    tmp_path: Path, vocab_size: int, added: tuple[str, ...], special: tuple[str, ...], refused: str | None
) -> None:
    tokenizer = byte_tokenizer(added=added)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_start|>", *special]})
    if "<written>" in special:
        tokenizer.chat_template = tokenizer.chat_template + "{# <written> #}"
    write_config(tmp_path, model={"path": str(model_dir(tmp_path / "odd", tokenizer, vocab_size=vocab_size))})
    if refused is None:
        assert open_model(load_resolved(tmp_path / "config.yaml")).vocabulary == range(vocab_size)
        return
    said = rf"model\.path.*{len(tokenizer)} tokens.*embeddings for {vocab_size}.*{refused}"
    with pytest.raises(ModelError, match=said):
        open_model(load_resolved(tmp_path / "config.yaml"))


# ---- ends


def test_ends_come_from_the_generation_config_or_the_config(tmp_path: Path) -> None:
    folder = model_dir(tmp_path / "model")
    for given, expected in (([0, 2, 7], (0, 2, 7)), (5, (5,)), (None, ()), ([], ())):
        set_ends(folder, given)
        assert end_ids(str(folder)) == expected
    (folder / "generation_config.json").unlink()
    assert end_ids(str(folder)) == (2,)
    assert end_ids(str(tmp_path / "nowhere")) == ()


def test_the_transformers_generator_ends_where_the_generation_config_says(tmp_path: Path) -> None:
    tokenizer = byte_tokenizer(GLM, ENDS)
    tokenizer.eos_token = "<|pad|>"
    folder = model_dir(tmp_path / "model", tokenizer)
    ends = [0, *tokenizer.convert_tokens_to_ids(["<|user|>", "<|observation|>"])]
    set_ends(folder, ends)
    write_config(tmp_path, generator={"name": "transformers", "group_size": 24, "max_tokens": 150})
    resolved = load_resolved(tmp_path / "config.yaml")
    model = open_model(resolved)
    assert set(model.renderer.eos_ids) == set(ends) == set(model.teacher_renderer.eos_ids)
    prompt = Prompt(id="1", messages=({"role": "user", "content": "2 + 2?"},))
    ((rollouts),) = (g.rollouts for g in local_generator(resolved, model).generate([prompt], seed=0))
    for rollout in rollouts:
        assert not set(ends).intersection(rollout.completion_ids[:-1])
        assert (rollout.completion_ids[-1] in ends) == (rollout.finish_reason == "stop")
    assert {r.completion_ids[-1] for r in rollouts} >= set(ends[1:]), "each of them ends some"


# ---- teachers


def with_teacher(folder: Path, **shape: Any) -> Path:
    model_dir(folder / "other", seed=7, **shape)
    config = {"teacher": {"name": "model", "path": str(folder / "other")}, "preflight": {"enabled": False}}
    return write_config(folder, steps=1, **config)


def test_a_smaller_vocabulary_of_the_teacher_bans_what_it_cannot_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = with_teacher(tmp_path, vocab_size=259)
    student = tiny_model()
    student.get_input_embeddings().weight.data[:255] = 0.0  # so that it samples the ids that the teacher lacks
    student.save_pretrained(tmp_path / "model")
    assert run_here(config, "generator.group_size=8", "generator.max_tokens=40", f"run_dir={tmp_path / 'run'}") == 0
    assert "259 embeddings, so the ids from there on are not sampled" in " ".join(capsys.readouterr().out.split())
    model = open_model(load_resolved(config))
    assert model.banned_token_ids == (259, 260, 261, 262, 263)


def test_the_window_of_the_teacher_limits_its_prompts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = with_teacher(tmp_path, window=48)
    run = f"run_dir={tmp_path / 'run'}"
    assert run_here(config, run) == 2
    said = capsys.readouterr()
    assert "context window of 48 tokens (the student 1024), so its prompts have at most 40" in " ".join(
        said.out.split()
    )
    assert "rendering.max_teacher_prompt_tokens" in said.err and "the limit is 40" in said.err
    assert run_here(config, "rendering.overlong=drop", run) == 0
    assert run_here(config, "generator.max_tokens=48", f"run_dir={tmp_path / 'long'}") == 2
    assert "leave no tokens for a prompt of the teacher" in capsys.readouterr().err


def test_a_larger_window_changes_nothing(tmp_path: Path) -> None:
    model = open_model(load_resolved(with_teacher(tmp_path, window=4096, vocab_size=320)))
    assert model.limits_of_teacher == "" and model.banned_token_ids == () and model.max_teacher_prompt_tokens == 1016


# ---- runs


def test_preflight_tells_tags_and_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "opens.jinja").write_text(
        byte_tokenizer().chat_template.replace("assistant\n{% endif %}", "assistant\n<seed:think>\n{% endif %}")
    )
    config = write_config(tmp_path, steps=1, rendering={"chat_template": str(tmp_path / "opens.jinja")})
    assert run_here(config, f"run_dir={tmp_path / 'run'}") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "<seed:think> … </seed:think>, from the generation prompt; completions begin inside it; '<|im_end|>' ends one"
        in said
    )


def test_a_lost_message_stops_the_run_with_its_row_and_role(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lost = byte_tokenizer().chat_template.replace("in messages %}", "in messages if m['role'] != 'system' %}")
    (tmp_path / "lost.jinja").write_text(lost)
    config = write_config(tmp_path, rendering={"chat_template": str(tmp_path / "lost.jinja")})
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    (tmp_path / "data.jsonl").write_text(json.dumps({"prompt": messages, "answer": "2", "solution": "2"}) + "\n")
    assert run_here(config, f"run_dir={tmp_path / 'run'}") == 2
    assert "prompt 'data/1'" in (said := capsys.readouterr().err) and "the 'system' message says ('Be brief.')" in said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("rendering.date='2026-13-01'", "rendering.date: got '2026-13-01', expected a day"),
        ("rendering.date='20260101'", "rendering.date: got '20260101', expected a day"),
        ("rendering.thinking_tags=[<think>]", "rendering.thinking_tags: got"),
        ("rendering.thinking_tags=[a,a]", "expected two different texts"),
        ("rendering.thinking_tags=['',b]", "expected two different texts"),
    ],
)
def test_settings_that_mean_nothing_are_refused(
    tmp_path: Path, override: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", str(write_config(tmp_path)), override]) == 2
    assert said in " ".join((captured := capsys.readouterr()).err.split()) + " ".join(captured.out.split())


def test_a_run_reads_one_date_on_every_day(tmp_path: Path) -> None:
    template = "Today is {{ strftime_now('%Y-%m-%d %H:%M:%S') }}.\n" + str(byte_tokenizer().chat_template)
    (tmp_path / "today.jinja").write_text(template)
    config = write_config(tmp_path, rendering={"chat_template": str(tmp_path / "today.jinja")})
    message: list[Message] = [{"role": "user", "content": "x"}]
    one, other = (
        open_model(load_resolved(config, overrides)).renderer for overrides in ([], ["rendering.date='2026-11-30'"])
    )
    assert one.decode(one.prompt_ids(message)).startswith("Today is 2026-01-01 00:00:00.")
    assert other.decode(other.prompt_ids(message)).startswith("Today is 2026-11-30 00:00:00.")
    assert run_here(config, "steps=1", "preflight.enabled=false", f"run_dir={tmp_path / 'run'}") == 0
    assert "date: '2026-01-01'" in (tmp_path / "run" / "config.yaml").read_text()
