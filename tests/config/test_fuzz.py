"""Whatever a file holds, reading it ends well or with an error written for users.

1. configs: shipped ones and a small one, spoilt at random, with overrides, and as raw text; 2. rows of data in every kind of file,
through to the tokens of a prompt. What is drawn is the same every time.
"""

from __future__ import annotations

import copy
import functools
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import yaml
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from onpolicy.config.load import load, to_yaml
from onpolicy.config.resolve import resolve
from onpolicy.data import load_prompts
from onpolicy.data.rendering import Renderer
from onpolicy.rewards.lexicon import LEXICONS
from onpolicy.utils.errors import UserError
from tests.config.test_resolve import CONFIGS
from tests.tiny import CHATML, byte_tokenizer

FIXED = settings(
    derandomize=True,
    deadline=None,
    database=None,
    phases=[Phase.generate],
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

SMALL: dict[str, Any] = {
    "model": {"path": "m"},
    "data": {"name": "file", "path": "d.jsonl"},
    "generator": {"name": "transformers", "group_size": 2},
    "rewards": [{"name": "math_answer", "weight": 1.0}],
    "contexts": {"teacher": {"name": "reference_solution"}},
    "teacher": {"name": "ema", "ema_decay": 0.9},
    "objective": [{"name": "distill", "divergence": {"name": "jsd", "beta": 0.5}, "weight": {"name": "constant", "value": 1.0}}],
    "eval": {"sets": {"near": {"name": "gym", "size": 2}}},
    "custom_lexicons": {"mine": ["perhaps"]},
    "guards": [{"name": "falls", "metric": "x", "below_fraction": 0.3}],
    "seed": 1,
}  # fmt: skip
STARTS = [SMALL, *(yaml.safe_load(path.read_text().replace("???", "x")) for path in CONFIGS)]

WORDS = [
    "", " ", "é\u202e\x1b[31m", "???", "${seed}", "${nope}", "${a", "${.}", "${..x}", "$${", "\\${seed}", "${oc.env:HOME}", "${steps}",
    "${objective}", "${oc.create:{a: 1}}", "a:b", ":", "os:", "..:x", "builtins:int",
    "onpolicy.config.resolve:Plan", "rewards:nope", "\x00:x",
    "name", "1e400", "-", "null", "jsd", "ema", "file", "constant", "a.b", "[", "teacher", "{lexicon}",
]  # fmt: skip
NUMBERS = [0, -1, 10**30, -(10**30), 2**63, 1e308, math.nan, math.inf, -math.inf, True, False, None]
SCALARS = st.sampled_from([*WORDS, *NUMBERS]) | st.text(max_size=6)
JUNK = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["name", "value", "beta", "weight", "x", ""]) | st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)  # fmt: skip


def places(tree: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    return [path, *(found for key, value in inner for found in places(value, (*path, key)))]


@st.composite
def spoilt(draw: st.DrawFn) -> Any:
    """A valid config with up to three entries replaced, added or removed."""
    tree: Any = copy.deepcopy(draw(st.sampled_from(STARTS)))
    for _ in range(draw(st.integers(0, 3))):
        *path, last = draw(st.sampled_from([p for p in places(tree) if p] or [("x",)]))
        inside = tree
        for key in path:
            inside = inside[key]
        what = draw(st.sampled_from(["replace", "replace", "add", "remove", "move"]))
        if what == "remove":
            del inside[last]
        elif what == "add" and isinstance(inside, dict):
            inside[
                draw(st.sampled_from(["name", "lr", "seed", "context", "marked", "lexicon"]) | st.text(max_size=4))
            ] = draw(JUNK)
        elif what == "move":
            inside[last] = {"name": inside[last]} if draw(st.booleans()) else [inside[last]]
        else:
            inside[last] = draw(JUNK)
        if not isinstance(tree, dict) or not tree:
            break
    return tree


KEYS = st.sampled_from(
    ["seed", "steps", "data", "data.path", "objective[0]", "objective[0].weight", "objective[9].x", "objective.x", "teacher.ema_decay",
     "trainer.lr", "eval.pass_at", "eval.sets.x", "guards[0].target", "custom_lexicons.x", "model", "a.b.c", "", ".", "[", "x[",
     "generator.top_p",
     "${seed}", "${oc.env:HOME}", "epistemic.lexicons", "logging.trackers", "contexts.teacher", "distributed.num_generators",
     "rewards[0].when"]
) | st.text(max_size=6)  # fmt: skip
VALUES = st.sampled_from(
    ["", "{", "[1", "&a [*a]", "*x", "!!python/object/apply:os.system [x]", "!!timestamp 2020-01-01", "2020-13-45", "0o9", "{a: {b: [c]}}",
     "? [x]", "- a", "1: 2", "{1: 2}", "{null: 1}", "'${seed}'", "[" * 400, "&a {b: 1}", "!!set {a}", "!!binary aGk=", "1_0", "~", "=",
     "{name: constant, value: x}", "{name: ema}", "%TAG", "\x00", "\ud800"]
) | JUNK.map(lambda v: json.dumps(v))  # fmt: skip
OVERRIDES: st.SearchStrategy[list[str]] = st.just([]) | st.lists(
    st.tuples(KEYS, VALUES).map("=".join) | st.text(max_size=8), max_size=2
)

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{chr(98 + i)}: &{chr(98 + i)} [{', '.join(['*' + chr(97 + i)] * 9)}]\n" for i in range(9)
)
TEXTS = st.one_of(
    st.binary(max_size=60),
    st.text(max_size=60).map(lambda t: t.encode(errors="replace")),
    st.text(alphabet="{}[]&*!|>'\"%@`,:- \n\tab1${}.", max_size=40).map(str.encode),
    st.tuples(st.text(alphabet="{}[]&*!:- \n\"'", max_size=4), st.integers(0, 200)).map(
        lambda pair: (lambda t: t[: pair[1]] + pair[0] + t[pair[1] :])(yaml.safe_dump(SMALL)).encode()
    ),
    st.sampled_from(
        [b"", b"\xef\xbb\xbfseed: 1", b"\xff\xfes\x00", BOMB.encode(), b"a: &a {b: *a}", b"[" * 3000, b"a: " * 300, b"seed: 1\nseed: 2",
         b"--- 1\n--- 2", b"model: {<<: {path: x}}", b"<<: [1]", b"&a data: {path: *a}", b"? {a: 1}\n: 2", b"3", b"x", b"- x", b"~",
         b"data: &d {name: file, path: x}\neval: {sets: {a: *d}}\nmodel: {path: x}\nobjective: [policy_gradient]\nrewards: [math_answer]"]
    ),
)  # fmt: skip


def ends_well(read: Callable[[], Any]) -> bool:
    """Whether it succeeded; raises what is no error for users, or one without a word."""
    try:
        read()
        return True
    except UserError as error:
        assert str(error).strip()
        return False


@pytest.fixture
def known_lexicons() -> Any:
    """Configs may name lists of words, for the whole process."""
    before = dict(LEXICONS)
    yield
    LEXICONS.clear()
    LEXICONS.update(before)


def read_config(path: Path, overrides: list[str]) -> None:
    config = load(path, overrides)
    resolve(config)
    to_yaml(config)


NIGHTLY = pytest.mark.nightly


@pytest.mark.omegaconf
@pytest.mark.usefixtures("known_lexicons")
@pytest.mark.parametrize("examples", [60, pytest.param(2000, marks=NIGHTLY)])
def test_configs(tmp_path: Path, examples: int) -> None:
    path = tmp_path / "config.yaml"
    fine = []

    @settings(FIXED, max_examples=examples)
    @given(spoilt(), OVERRIDES)
    def as_tree(tree: Any, overrides: list[str]) -> None:
        path.write_text(yaml.safe_dump(tree), encoding="utf-8", errors="surrogatepass")
        fine.append(ends_well(lambda: read_config(path, overrides)))

    @settings(FIXED, max_examples=examples)
    @given(TEXTS)
    def as_text(text: bytes) -> None:
        path.write_bytes(text)
        ends_well(lambda: read_config(path, []))

    as_text()
    as_tree()
    assert 0.02 < sum(fine) / len(fine) < 0.9, "neither all spoilt nor all fine"


CONTENTS = st.sampled_from(
    ["2 + 2?", "", " ", "\x00", "\ud800", "<|im_end|>", "<|im_start|>system\nx", "\ue000", "\ue0000\ue001", "\ue0007\ue001", "x" * 900,
     "[1, 2]", '[{"role": "user", "content": "x"}]', '[{"role": "user"', '{"a": 1}', "{problem}", "{{ 7 * 7 }}", "{% raw %}", "\x1b[2J",
     "٣", "\u2028", "1e999"]
) | st.text(max_size=8)  # fmt: skip
ROLES = st.sampled_from(
    ["user", "assistant", "system", "tool", "", "user<|im_end|>", "\n", "\ue0000\ue001", 1, None]
) | st.text(max_size=3)
PARTS = st.just([{"type": "text", "text": "x"}])
MESSAGES = st.lists(
    st.fixed_dictionaries({}, optional={"role": ROLES, "content": CONTENTS | st.none() | st.integers() | PARTS})
    | CONTENTS,
    max_size=3,
)
ODD: list[Any] = [{}, [], [[]], {"ground_truth": 4}, {"ground_truth": {"a": [1]}}, {"index": [1]}, {"solution": None}]
CELLS: st.SearchStrategy[Any] = st.one_of(
    CONTENTS, MESSAGES, MESSAGES.map(lambda m: json.dumps(m)), st.sampled_from([*NUMBERS, 10**400, *ODD])
)
COLUMNS = st.sampled_from(
    ["prompt", "messages", "problem", "question", "answer", "ground_truth", "reward_model", "extra_info", "solution", "id", "idx", "label",
     "problem_id", "", "x.y", "prompt "]
)  # fmt: skip
ROWS = st.lists(
    st.fixed_dictionaries({"prompt": CELLS}, optional={"answer": CELLS, "id": CELLS, "solution": CELLS})
    | st.dictionaries(COLUMNS, CELLS, max_size=5)
    | CELLS,
    max_size=4,
)
HARD_LINES = [
    b"{}", b"[]", b"null", b"nan", b'{"prompt": NaN}', b'{"prompt": "a", "prompt": "b"}', b'{"prompt": "\xff"}', b"", b"\x00",
    b"\xef\xbb\xbf" + b'{"prompt": "a"}', b'{"prompt": "\\ud800"}', b'{"prompt": "a\xe2\x80\xa8b"}', b'{"prompt": "\x1f"}',
    b'{"prompt": "a", "id": "a"}', b'{"prompt": "a"} x', b"\xff\xfe{\x00}\x00", b"[" * 3000, b'{"prompt": ' + b"9" * 5000 + b"}",
    b'{"prompt": "a", "x": ' + b"[" * 700 + b"]" * 700 + b"}",
]  # fmt: skip
TEMPLATES = [
    CHATML,
    "{% for m in messages %}{% if m.role not in ['user'] %}{{ raise_exception('odd') }}{% endif %}"
    "{{ m.content | trim | upper }}{% endfor %}",
    "{{ messages[-1]['content'].split('</think>')[-1] }}",
]


@st.composite
def data_files(draw: st.DrawFn) -> tuple[str, bytes]:
    """A file's ending and its bytes."""
    kind = draw(st.sampled_from([".jsonl", ".json", ".parquet", ".jsonl", ".csv"]))
    rows = draw(ROWS)
    if kind == ".parquet":
        content = parquet_bytes([row for row in rows if isinstance(row, dict)])
    elif kind == ".json":
        content = json.dumps(draw(st.sampled_from([rows, {"rows": rows}, rows]))).encode()
    else:
        lines = [json.dumps(row, ensure_ascii=draw(st.booleans())).encode(errors="surrogatepass") for row in rows]
        content = b"\n".join(draw(st.permutations([*lines, *draw(st.lists(st.sampled_from(HARD_LINES), max_size=1))])))
    damage = draw(st.sampled_from(["none", "none", "none", "cut", "byte", "bom"]))
    if damage == "cut":
        content = content[: draw(st.integers(0, len(content)))]
    elif damage == "byte" and content:
        place = draw(st.integers(0, len(content) - 1))
        content = content[:place] + bytes([draw(st.integers(0, 255))]) + content[place + 1 :]
    elif damage == "bom":
        content = draw(st.sampled_from([b"\xef\xbb\xbf", b"\xff\xfe"])) + content
    return kind, content


def parquet_bytes(rows: list[dict[str, Any]]) -> bytes:
    """Columns that have no one type are stored as JSON text, as such files are."""
    columns: dict[str, Any] = {}
    for name in dict.fromkeys(key for row in rows for key in row):
        values = [row.get(name) for row in rows]
        try:
            columns[name] = pyarrow.array(values)
            written({name: columns[name]})
        except (pyarrow.ArrowException, OverflowError, UnicodeError, TypeError):
            columns[name] = pyarrow.array([json.dumps(value) for value in values])
    return written(columns)


def written(columns: dict[str, Any]) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(columns), sink)
    return sink.getvalue().to_pybytes()  # type: ignore[no-any-return]


@pytest.mark.filterwarnings("ignore:.*left out")
@pytest.mark.parametrize("examples", [400, pytest.param(10_000, marks=NIGHTLY)])
def test_data(tmp_path: Path, examples: int) -> None:
    renderers = [Renderer(byte_tokenizer(template), max_prompt_tokens=800) for template in TEMPLATES]
    fine, rendered = [], []

    @settings(FIXED, max_examples=examples)
    @given(
        data_files(),
        st.sampled_from(["refuse", "skip"]),
        st.sampled_from([None, "{problem}!", ""]),
        st.sampled_from(renderers),
    )
    def through(file: tuple[str, bytes], on_bad_row: Any, template: str | None, renderer: Renderer) -> None:
        path = tmp_path / f"data{file[0]}"
        path.write_bytes(file[1])
        prompts: list[Any] = []
        fine.append(
            ends_well(lambda: prompts.extend(load_prompts(path, on_bad_row=on_bad_row, prompt_template=template)))
        )
        assert len({p.id for p in prompts}) == len(prompts)
        for prompt in prompts:
            rendered.append(ends_well(functools.partial(renderer.prompt_ids, prompt.messages)))
            json.dumps(prompt.fields.get("answer")).encode()
            str(prompt.id).encode()

    through()
    assert 0.05 < sum(fine) / len(fine) < 0.9 and len(rendered) > 30
