"""Run on several ranks by tests/trainer/test_loaded_once.py: loads a model once for all of them, and says what each has of it."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from onpolicy.trainer.loaded_once import loaded_once
from tests.tiny import FAMILIES, tiny_model

LARGE = {"width": 512, "vocab_size": 20_000}


def anonymous() -> int:
    """Bytes of this process that no other one shares."""
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith(("Private_Dirty:", "Private_Clean:"))) * 1024


def main(folder: Path) -> None:
    dist.init_process_group("gloo")
    rank, loads = dist.get_rank(), list[str]()
    found: dict[str, Any] = {}

    def load(family: str) -> Any:
        loads.append(family)
        return tiny_model(family)

    ids = torch.arange(3, 20)[None]
    for family in ("qwen3", "llama", *FAMILIES):
        model, own = loaded_once(partial(load, family)), tiny_model(family)
        same = model.state_dict().keys() == own.state_dict().keys()
        same &= all(
            torch.equal(a, b) for a, b in zip(model.state_dict().values(), own.state_dict().values(), strict=True)
        )
        same &= len(list(model.parameters())) == len(list(own.parameters()))  # tied ones once
        same &= torch.equal(model.eval()(ids).logits, own.eval()(ids).logits)
        found[family] = bool(same)
    found["loads"] = loads
    before = anonymous()
    model = loaded_once(lambda: tiny_model("qwen3", **LARGE))
    found["size"], found["taken"] = sum(p.nbytes for p in model.parameters()), anonymous() - before
    with torch.no_grad():
        next(model.parameters()).fill_(float(rank + 1))
    dist.barrier()
    found["own"] = float(next(model.parameters()).sum() / next(model.parameters()).numel())
    found["written"] = next(model.parameters()).nbytes
    before = anonymous()
    del model
    found["freed"] = before - anonymous()
    kept = loaded_once(unpicklable)
    found["unpicklable"] = type(kept).__name__
    (folder / f"{rank}.json").write_text(json.dumps(found))
    dist.barrier()
    dist.destroy_process_group()


def unpicklable() -> Any:
    model = tiny_model("qwen3")
    model.hook = lambda: os.getpid()
    return model


if __name__ == "__main__":
    main(Path(sys.argv[1]))
