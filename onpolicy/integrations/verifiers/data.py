"""The problems of an environment of verifiers."""

from __future__ import annotations

from typing import Any, Literal

from onpolicy.data.errors import DataError
from onpolicy.integrations.verifiers.environment import INPUT
from onpolicy.integrations.verifiers.loading import load_environment, needs_verifiers
from onpolicy.integrations.verifiers.messages import to_messages
from onpolicy.types import Prompt
from onpolicy.utils.ready import ready_if


@ready_if(needs_verifiers)
def verifiers(
    *,
    id: str,
    args: dict[str, Any] | None = None,
    split: Literal["train", "eval"] = "train",
    size: int | None = None,
    seed: int | None = None,
) -> list[Prompt]:
    """The problems of an environment of the library verifiers; give `environment` the same `id` and `args`, e.g. `${environment.id}`.

    Args:
        id: name of an installed environment package, or `module:callable`
        args: what its `load_environment`, or the callable, is called with
        split: its dataset for training or that for evaluation
        size: number of problems; null: all
        seed: shuffles them; null: as they stand
    """
    from verifiers.utils.message_utils import normalize_messages

    environment = load_environment(id, args)
    if split == "eval" and environment.build_eval_dataset() is None:
        raise DataError(
            f"data.split: {id!r} has no problems for evaluation; expected split=train, or an environment that has some"
        )
    choose = environment.get_dataset if split == "train" else environment.get_eval_dataset
    rows = choose(n=-1 if size is None else size, seed=seed)
    found = []
    for row in rows:
        given = dict(row)
        tools = (given.get("info") or {}).get("tool_defs") if isinstance(given.get("info"), dict) else None
        offered = environment._normalize_tool_defs(tools) if tools else environment.tool_defs
        messages = to_messages(normalize_messages(given["prompt"]), offered)
        if not messages:
            raise DataError(f"data: row {given['example_id']} of {id!r} has an empty prompt")
        asked = next((m["content"] for m in reversed(messages) if m["role"] == "user"), messages[-1]["content"])
        fields = {"problem": asked, "data_source": id, INPUT: given}
        if given.get("answer") not in (None, ""):
            fields["answer"] = str(given["answer"])
        found.append(Prompt(id=f"{id}/{given['example_id']}", messages=messages, fields=fields, interactive=True))
    return found
