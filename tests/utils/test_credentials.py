"""Secrets in settings and texts: by their key, and by what they look like; what is none stays."""

from __future__ import annotations

import pytest

from onpolicy.utils.credentials import HIDDEN, hide_credentials, without_secrets


@pytest.mark.parametrize(
    "key",
    [
        "token", "hub_token", "accessToken", "secret_key", "api_keys", "X-Api-Key", "OPENAI_API_KEY", "private_key", "authorization",
        "db_passwd", "dbPassword", "credentials", "aws_access_key_id", "aws_secret_access_key", "client_secret", "auth_tokens",
    ],
)  # fmt: skip
def test_a_key_of_a_secret(key: str) -> None:
    given = {"server": {key: "abc", "port": 1}, key: ["a", "b"], "others": [{key: 5}]}
    assert without_secrets(given) == {"server": {key: HIDDEN, "port": 1}, key: HIDDEN, "others": [{key: HIDDEN}]}
    assert without_secrets({key: None}) == {key: None}


@pytest.mark.parametrize(
    "key", ["pad_token", "eos_token", "stop_token", "max_tokens", "tokens", "tokens_every", "keys", "author", "loss_per_token"]
)  # fmt: skip
def test_a_key_of_no_secret(key: str) -> None:
    assert without_secrets({key: "<|end|>"}) == {key: "<|end|>"}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("to https://bob:p@ss@host.org/x", f"to https://{HIDDEN}@host.org/x"),
        ("with ghp_0123456789abcdefABCDEF,", f"with {HIDDEN},"),
        ("AKIAABCDEFGHIJKLMNOP", HIDDEN),
        ("Authorization: Bearer a1b2c3d4.e5f6==", f"Authorization: Bearer {HIDDEN}"),
        ("sk-proj-a1b2c3d4e5", HIDDEN),
        ("https://host/x?access_token=abc&b=1", f"https://host/x?access_token={HIDDEN}&b=1"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n", f"{HIDDEN}\n"),
    ],
)
def test_a_credential_in_a_text(text: str, shown: str) -> None:
    assert hide_credentials(text) == shown
    assert without_secrets({"note": [text]}) == {"note": [shown]}


@pytest.mark.parametrize(
    "text",
    ["the bearer of it", "onpolicy.rollout.hf_generator:make", "task-specific words", "bob@host.org, https://host.org/a@b", "avg@8"],
)  # fmt: skip
def test_a_text_without_one_stays(text: str) -> None:
    assert hide_credentials(text) == text
