"""What stands at a path in place of a model that can be loaded."""

from __future__ import annotations

from pathlib import Path

EXPECTED = "expected a Hugging Face model folder (config.json, model.safetensors, tokenizer.json)"
WEIGHTS = (".gguf", ".safetensors", ".bin", ".pt", ".pth", ".ckpt")


def why_no_model(path: str) -> str:
    """Why a path is neither a model's folder nor the id of one on the hub, with the remedy; empty where it may be one."""
    folder = Path(path).expanduser()
    if folder.is_file() or folder.suffix in WEIGHTS:
        what = "is a file" if folder.is_file() else "is the name of a file, and there is none here"
        return f"{path!r} {what}, {EXPECTED}{'; gguf files have to be converted' if folder.suffix == '.gguf' else ''}"
    if not folder.is_dir():
        is_path = path.startswith((".", "/", "~")) or path.count("/") > 1
        return f"{path!r} does not exist, {EXPECTED} or the id of one on the hub" if is_path else ""
    if (folder / "config.json").is_file():
        return ""
    if (folder / "adapter_config.json").is_file():
        return f"folder {path!r} holds an adapter without its model; merge the two (peft: merge_and_unload) and save the result"
    if checkpoints := sorted(folder.glob("checkpoints/step-*"), key=lambda p: (len(p.name), p.name)):
        return f"folder {path!r} is a run; its last checkpoint is {str(checkpoints[-1])!r}"
    return f"folder {path!r} has no config.json; {EXPECTED}"
