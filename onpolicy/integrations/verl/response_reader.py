"""What the text of a row says, read by the worker that sampled it and joined in the driver."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import onpolicy
from onpolicy.annotation.build import text_telemetry, token_classes
from onpolicy.annotation.reading import ReadText, TextReader
from onpolicy.config.resolved import ResolvedConfig
from onpolicy.data.rendering import Renderer
from onpolicy.epistemic.ids import class_names
from onpolicy.integrations.verl.rows import as_lists, rollout_group
from onpolicy.rewards.lexicon import LEXICONS
from onpolicy.types import RolloutGroup

READ = "onpolicy_read"
"""Key of a row's ``extra_fields``."""
STAMP_BYTES = 16
READ_FIELDS = ("prompts", "responses", "response_mask", "rollout_log_probs")
"""Tensors of a row that its text and what is read off it follow from."""


@dataclass(frozen=True)
class ReadResponse:
    """A row's sampled tokens as text, and what the text says."""

    text: str
    read: ReadText


class ResponseReader:
    """A worker's packs what it reads; the driver's unpacks what one of the same version and method has packed for the same row."""

    def __init__(self, resolved: ResolvedConfig, renderer: Renderer) -> None:
        """
        Args:
            resolved: the config
            renderer: the student's
        """
        self._reader = TextReader(token_classes(resolved), text_telemetry(resolved, renderer), renderer)
        self._renderer, self._max_tokens = renderer, resolved.generator.settings.max_tokens
        settings, classes = resolved.config.epistemic, class_names(resolved)
        words = {name: LEXICONS.get(name) for name in (*settings.lexicons, settings.lexicon, *classes)}
        thinking = renderer.opens_thinking, renderer.thinking_tags
        self._method = repr((onpolicy.__version__, settings, classes, words, thinking))

    def pack(self, row: Mapping[str, Any]) -> bytes:
        """Reads a row; the result is a few times smaller than the row's tensors.

        Raises:
            ValueError: the row is none that ``rollout_group`` reads.
        """
        group = rollout_group([row], self._renderer, max_tokens=self._max_tokens)
        return self._stamp(row) + pickle.dumps(ReadResponse(group.rollouts[0].text, self.read(group, 0)))

    def unpack(self, row: Mapping[str, Any]) -> ReadResponse | None:
        """None where nobody has read this row, or only by another version or method, or the row was changed since."""
        packed = (row.get("extra_fields") or {}).get(READ)
        if not isinstance(packed, bytes) or packed[:STAMP_BYTES] != self._stamp(row):
            return None
        found: ReadResponse = pickle.loads(memoryview(packed)[STAMP_BYTES:])
        return found

    def read(self, group: RolloutGroup, index: int) -> ReadText:
        """Reads one rollout here."""
        return self._reader.read(group, index)

    def _stamp(self, row: Mapping[str, Any]) -> bytes:
        """Tells apart rows, versions and methods, so that none is given what was read of another."""
        asked = repr((self._method, as_lists(row["raw_prompt"]), as_lists(row.get("tools"))))
        found = hashlib.blake2b(asked.encode(errors="surrogatepass"), digest_size=STAMP_BYTES)
        for name in READ_FIELDS:
            found.update(b"" if (values := row.get(name)) is None else values.contiguous().numpy())
            found.update(b"|")
        return found.digest()
