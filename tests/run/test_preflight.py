"""What preflight says of the passes that its checks ran; stand-ins take the place of the trainer."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from onpolicy.run.preflight import Preflight


@pytest.mark.parametrize(
    ("computed", "said"),
    [({}, ""), ({1: "bfloat16", 2: "bfloat16"}, "✓ forward passes run as they should (bfloat16 on cpu)\n")],
)
def test_the_dtype_of_passes_is_said_where_there_were_some(computed: dict[int, str], said: str) -> None:
    out, trainer = io.StringIO(), SimpleNamespace(engine=SimpleNamespace(computed=computed), device="cpu")
    nothing: Any = None
    Preflight(trainer, nothing, nothing, (), None, Console(file=out, width=200)).show_dtype()  # type: ignore[arg-type]
    assert out.getvalue() == said
