"""What of settings and texts is for one user alone, and is shown to nobody else."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

HIDDEN = "<hidden>"
SECRET = re.compile(
    r"(?i)(?:.*[_.-])?(?:(?:api|access|private|secret|auth|signing|encryption)[_-]?keys?(?:[_-]?id)?|secrets?|passphrase|pwd|token"
    r"|(?:api|auth|access|hub|hf|bearer|session|refresh)[_-]tokens|credentials?|authori[sz]ation|auth|bearer)|.*passw(?:or)?ds?"
)
"""Keys whose values are secrets."""
OF_A_TEXT = re.compile(
    r"(?i).*(?:^|[_-])(?:bos|eos|pad|unk|sep|cls|mask|special|image|video|audio|begin|end|start|stop|think|new|next|first|last|extra|per"
    r"|added|max|min|num|of)[_-]token"
)
"""Keys of tokens that a model reads and writes."""
CREDENTIAL = re.compile(
    r"(?<![\w.-])(?:hf_[A-Za-z0-9]{8,}|gh[pousr]_[A-Za-z0-9]{8,}|(?:github_pat_|glpat-|xox[abeprs]-|nvapi-)[\w-]{8,}"
    r"|sk-(?=[\w-]*\d|[\w-]{16})[\w-]{8,}|A[KS]IA[A-Z0-9]{12,}|AIza[\w-]{20,}|eyJ[\w-]{8,}\.[\w-]{8,}\.[\w-]*)"
    r"|(?i:(?<=\bbearer )|(?<=authorization: basic ))(?=[\w.~+/-]*\d|\S{20})[\w.~+/-]{8,}=*"
    r"|(?<=://)[^\s/?#\"'<>]+(?=@)"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)",
    re.DOTALL,
)
"""What looks like one, whatever its key: by its beginning, after ``Bearer``, or as the user of a URL."""
IN_QUERY = re.compile(r"(?i)([?&][\w.-]*(?:key|token|secret|passw(?:or)?d|signature|sig)=)[^\s&#]+")


def hide_credentials(text: str) -> str:
    """The text without what looks like a credential."""
    return IN_QUERY.sub(rf"\1{HIDDEN}", CREDENTIAL.sub(HIDDEN, text))


def without_secrets(value: Any, name: str = "") -> Any:
    """A config, or a part of one under the key ``name``, with ``HIDDEN`` in place of secrets."""
    if _is_secret(name) and value is not None and not isinstance(value, bool):
        return HIDDEN
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return dataclasses.replace(
            value, **{f.name: without_secrets(getattr(value, f.name), f.name) for f in dataclasses.fields(value)}
        )
    if isinstance(value, Mapping):
        return {key: without_secrets(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_secrets(inner) for inner in value]
    return hide_credentials(value) if isinstance(value, str) else value


def _is_secret(name: str) -> bool:
    words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)  # of apiKey
    return bool(SECRET.fullmatch(words)) and not OF_A_TEXT.fullmatch(words)
