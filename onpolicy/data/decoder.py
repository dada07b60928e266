"""Token ids -> text without transformers, which loads torch: for processes that read completions and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class Decoder(Protocol):
    """What reads token ids; a ``Renderer`` is one."""

    def completion_text(self, ids: Sequence[int]) -> str:
        """Without special tokens; thinking tags stay, as text."""
        ...

    def decode(self, ids: Sequence[int]) -> str:
        """With everything, for showing."""
        ...


@dataclass(frozen=True, eq=False)
class FastDecoder:
    """The same by the library beneath transformers' tokenizers. Can be pickled."""

    backend: Any
    """A ``tokenizers.Tokenizer``."""
    skipped: frozenset[int]
    """Ids that are left out of a completion's text; empty: the special ones."""

    def completion_text(self, ids: Sequence[int]) -> str:
        if not self.skipped:
            return str(self.backend.decode(list(ids), skip_special_tokens=True))
        return self.decode([i for i in ids if i not in self.skipped])

    def decode(self, ids: Sequence[int]) -> str:
        return str(self.backend.decode(list(ids), skip_special_tokens=False))
