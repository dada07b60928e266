"""What a run reads again whenever it is resumed: its problems, its models, its chat template.

The settings say where these are; ``inputs.json`` in the run folder says what was there when the run began. Other content under the same
name would change in silence what is trained on, what the teacher knows or what the reference model is.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.data.digest import dataset_difference, dataset_digest
from onpolicy.models import hub_commit, resolve_model
from onpolicy.types import Prompt
from onpolicy.utils.disk import atomic_write
from onpolicy.utils.errors import UserError
from onpolicy.utils.hashes import short_hash

INPUTS = "inputs.json"
MODEL_FILES = (
    *("*.safetensors", "pytorch_model*.bin", "config.json", "generation_config.json", "tokenizer*", "chat_template*"),
    *("special_tokens_map.json", "added_tokens.json", "vocab*", "merges.txt", "*.model", "*.gguf", "*.py"),
)
"""Files of a model's folder that are read when it is loaded; others, e.g. a README, may change."""
WHOLE = 2**26
"""Bytes up to which a file is read whole."""
STRIDE, SAMPLE = 2**20, 2**16
"""Of a larger file its first stride, and a sample at the beginning of every other stride, are read: of 16 GB one GB."""


class OtherInputs(UserError, ValueError):
    """A run would go on with other problems or another model than it began with; names what differs."""


def keep_inputs(folder: Path, problems: Mapping[str, Sequence[Prompt]], files: Mapping[str, Mapping[str, str]]) -> bool:
    """Notes what a run reads, or compares it with what the run in this folder began with.

    Args:
        folder: the run's
        problems: by the key of their section, e.g. ``data``
        files: by the key of their path, e.g. ``model.path``: file -> digest

    Returns:
        False where the folder holds checkpoints but not what their run has read, so that nothing could be compared.

    Raises:
        OtherInputs: something differs, and the folder holds checkpoints.
    """
    path = folder / INPUTS
    continues = (folder / "checkpoints").is_dir()
    if continues and path.is_file():
        differing = list(_differences(json.loads(path.read_text()), problems, files))
        if differing:
            raise OtherInputs(
                f"run_dir: {str(folder)!r} holds a run that began with other content ({'; '.join(differing)}). "
                "Put back what was there to resume it, or give another run_dir."
            )
        return True
    now = {"problems": {key: dataset_digest(prompts) for key, prompts in problems.items()}, "files": files}
    atomic_write(path, json.dumps(now) + "\n")
    return not continues


def read_contents(folder: Path) -> dict[str, str]:
    """By key a hash of what the run in a folder has read there; empty where it does not say."""
    path = folder / INPUTS
    if not path.is_file():
        return {}
    kept = json.loads(path.read_text())
    found = {key: str(problems["digest"]) for key, problems in kept["problems"].items()}
    return found | {key: short_hash(json.dumps(files, sort_keys=True).encode()) for key, files in kept["files"].items()}


def input_files(resolved: ResolvedConfig, teacher_path: str | None) -> dict[str, dict[str, str]]:
    """By their keys, the models and the template that a run reads: file -> digest.

    Args:
        resolved: the config
        teacher_path: the model that teaches, where it is another one
    """
    settings, template = resolved.config.model, resolved.config.rendering.chat_template
    found = {
        "model.path": model_content(
            settings.path, trust_remote_code=settings.trust_remote_code, revision=settings.revision
        )
    }
    if teacher_path is not None:
        found["teacher.path"] = model_content(teacher_path, trust_remote_code=settings.trust_remote_code)
    if template is not None and Path(template).is_file():
        found["rendering.chat_template"] = {Path(template).name: file_digest(Path(template))}
    return found


def model_content(path: str, *, trust_remote_code: bool = False, revision: str | None = None) -> dict[str, str]:
    """What a model is, by content: the digests of a folder's files, or the commit of a model on the hub; times do not matter."""
    found = resolve_model(path)
    if Path(found).is_dir():
        files = {file for pattern in MODEL_FILES for file in Path(found).glob(pattern) if file.is_file()}
        return {file.name: file_digest(file) for file in sorted(files)}
    commit = hub_commit(found, trust_remote_code=trust_remote_code, revision=revision)
    return {} if commit is None else {"commit": commit}


def file_digest(path: Path) -> str:
    """A hash of a file's size and content; of one above 64 MiB, of 64 KiB in every MiB."""
    size = path.stat().st_size
    found = hashlib.sha256(str(size).encode())
    with path.open("rb") as file:
        if size <= WHOLE:
            found.update(file.read())
        else:
            found.update(file.read(STRIDE))
            for start in range(STRIDE, size, STRIDE):
                file.seek(start)
                found.update(file.read(SAMPLE))
    return found.hexdigest()[:16]


def _differences(
    before: Mapping[str, Any], problems: Mapping[str, Sequence[Prompt]], files: Mapping[str, Mapping[str, str]]
) -> Iterable[str]:
    for key, prompts in problems.items():
        if key in before["problems"] and (text := dataset_difference(before["problems"][key], prompts)):
            yield f"{key}: {text}"
    for key, now in files.items():
        then = before["files"].get(key, {})
        changed = sorted(name for name in {*then, *now} if then.get(name) != now.get(name))
        if then and changed:
            yield f"{key}: {', '.join(changed)} changed"
