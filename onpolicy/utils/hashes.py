"""Short hashes of contents, by which two are told apart."""

from __future__ import annotations

import hashlib


def short_hash(content: bytes) -> str:
    """Sixteen hexadecimal digits of SHA-256."""
    return hashlib.sha256(content).hexdigest()[:16]
