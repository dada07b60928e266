"""``onpolicy push``: a run's model, with its card, to the Hugging Face Hub."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

from onpolicy.integrations.hub.card import model_card
from onpolicy.integrations.hub.trained import read_trained
from onpolicy.utils.disk import atomic_write
from onpolicy.utils.errors import ConfigError, UserError, first_line

CARD = "README.md"
KEPT_BACK = ("state/*", "state.json", "manifest.json")
"""What only resumes a run."""


def push(folder: Path, repo: str | None, public: bool, dry_run: bool) -> None:
    """Writes the card into the folder of the run's last model, and uploads that folder without what only resumes the run.

    Args:
        folder: the run's
        repo: ``owner/name``, or a name of the token's owner; None: the run's name
        public: whether everybody sees a repository that is created
        dry_run: write the card, and upload nothing

    Raises:
        UserError: there is nothing to upload, the run is not finished, or the hub refuses.
    """
    run = read_trained(folder)
    repo = repo or re.sub(r"[^\w.-]+", "-", run.name)
    atomic_write(run.model / CARD, model_card(run, repo))
    files = _files(run.model)
    size = sum(path.stat().st_size for path in files) / 2**20
    print(f"{run.model / CARD}: the card")
    if dry_run:
        print(f"would be uploaded to {repo}: {len(files)} files, {size:.1f} MiB")
        for path in files:
            print(f"  {path.relative_to(run.model)}")
        return
    steps = run.resolved.config.steps
    if run.step < steps:
        raise ConfigError(
            f"{str(folder)!r} is not finished: its last model is that of step {run.step} of {steps}. Resume it with run_dir={folder}; "
            "--dry-run writes its card as it is."
        )
    print(f"{_upload(run.model, repo, private=not public)}: {len(files)} files, {size:.1f} MiB")


def _files(model: Path) -> list[Path]:
    found = sorted(path for path in model.rglob("*") if path.is_file())
    return [p for p in found if not any(fnmatch(p.relative_to(model).as_posix(), kept) for kept in KEPT_BACK)]


def _upload(model: Path, repo: str, *, private: bool) -> str:
    """Returns the address of the repository."""
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if get_token() is None:
        raise UserError("push: no token of the Hugging Face Hub was found: run `hf auth login`, or set HF_TOKEN")
    api = HfApi()
    try:
        made = api.create_repo(repo, private=private, exist_ok=True)
        api.upload_folder(
            folder_path=model, repo_id=made.repo_id, ignore_patterns=list(KEPT_BACK), commit_message="Model and card"
        )
    except (HfHubHTTPError, HFValidationError, OSError) as error:
        raise UserError(
            f"push: {repo!r} could not be uploaded ({type(error).__name__}: {first_line(error)})"
        ) from error
    return str(made)
