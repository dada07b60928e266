"""What a trainer saves: copied once, or not at all, by the ranks themselves.

1. a copy is the state as it was, whatever is trained meanwhile, and both ways of writing give the same files' contents; 2. a copy takes
at most 1.05 times the state in memory, writing without one a file at a time; 3. ranks share the tensors evenly, each written once, and a
state is read by any number of ranks; 4. a rank that cannot write goes through its collectives all the same; 5. the Hugging Face folder is
in the generator's dtype, the state in float32, tied weights once; 6. every family's folder loads to the last bit.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from onpolicy.models import load_causal_lm
from onpolicy.trainer import saved_state, saving
from onpolicy.trainer.collectives import SingleProcess
from onpolicy.trainer.export import ModelExport
from onpolicy.trainer.saved_state import SavedTensors, own_share, write_share
from onpolicy.trainer.teacher_rules import ema, live
from onpolicy.trainer.trainer import PolicyTrainer
from onpolicy.utils.disk import is_full
from onpolicy.utils.host_memory import available_memory
from onpolicy.utils.live_bytes import LiveBytes
from tests.run.test_run import no_file_above
from tests.tiny import FAMILIES, byte_tokenizer, random_examples, tiny_model
from tests.trainer.test_teacher import trainer as teacher_trainer
from tests.trainer.test_trainer import trainer


def saving_trainer(dtype: str = "float32") -> PolicyTrainer:
    one = trainer(rule=ema(ema_decay=0.9))
    one.files._export = ModelExport(tiny_model(seed=1), byte_tokenizer(), dtype)
    one.step(random_examples(4))
    return one


def tensors_in(folder: Path) -> dict[str, Tensor]:
    with SavedTensors(folder) as saved:
        return {name: saved[name].clone() for name in saved}


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[n], other[n]) for n in one)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_copy_and_a_stream_write_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dtype: str) -> None:
    one = saving_trainer(dtype)
    for name, free in (("copied", 1 << 40), ("streamed", 0)):
        (tmp_path / name).mkdir()
        monkeypatch.setattr(saving, "available_memory", lambda free=free: free)
        rest = one.save(tmp_path / name)
        if name == "copied":
            assert not list((tmp_path / name).iterdir())
            before = {n: t.clone() for n, t in one.weights()}
            now = one.files.num_bytes()
            rest_later = rest
    one_file = load_file(tmp_path / "streamed" / "model.safetensors")
    one.step(random_examples(4, seed=1))  # meanwhile training goes on
    rest_later()
    assert equal(tensors_in(tmp_path / "copied"), tensors_in(tmp_path / "streamed"))
    assert equal(load_file(tmp_path / "copied" / "model.safetensors"), one_file)
    assert {t.dtype for t in one_file.values()} == {getattr(torch, dtype)} and "lm_head.weight" not in one_file
    assert all(torch.equal(one_file[n], before[n].to(getattr(torch, dtype))) for n in one_file)
    weights = {n: t for n, t in tensors_in(tmp_path / "copied").items() if n.startswith("weights/")}
    assert {t.dtype for t in weights.values()} == {torch.float32}
    assert f'"dtype": "{dtype}"' in (tmp_path / "copied" / "config.json").read_text()
    state, model = (sum(t.nbytes for t in found.values()) for found in (tensors_in(tmp_path / "copied"), one_file))
    assert list(now) == pytest.approx([state, model], rel=0.01), "as it was said beforehand"


def test_the_state_is_copied_once(tmp_path: Path) -> None:
    one = saving_trainer()
    state, _ = one.files.num_bytes()
    with LiveBytes([*one.student.buffers(), *one.student.parameters(), *(t for _, t in one.files._tensors())]) as made:
        one.save(tmp_path)()
    assert 0.95 <= made.peak / state <= 1.05, "the student's own folder is written from the same copy"


def test_without_a_copy_a_file_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a GPU, where every tensor that goes to the host is a copy."""
    one = saving_trainer()
    one.files._export = None
    monkeypatch.setattr(saving, "available_memory", lambda: 0)
    monkeypatch.setattr(saved_state, "FILE_BYTES", 100_000)
    move, largest = Tensor.to, max(p.nbytes for p in one.student.parameters())

    def to_host(self: Tensor, *args: Any, **options: Any) -> Tensor:
        return move(self, *args, **options | ({"copy": True} if args[:1] == ("cpu",) else {}))

    monkeypatch.setattr(Tensor, "to", to_host)
    with LiveBytes([*one.student.buffers(), *one.student.parameters(), *(t for _, t in one.files._tensors())]) as made:
        one.save(tmp_path)()
    assert 100_000 <= made.peak <= 100_000 + largest
    assert len(list((tmp_path / "state").iterdir())) > 3


class Ranks(SingleProcess):
    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size


def test_ranks_share_the_tensors_by_size(tmp_path: Path) -> None:
    tensors = [(f"t{i}", torch.full((10 * (i % 7) + 1,), float(i))) for i in range(40)]
    own = [list(own_share(iter(tensors), Ranks(rank, 3))) for rank in range(3)]
    assert sorted(n for mine in own for n, _ in mine) == sorted(n for n, _ in tensors), "each once"
    sizes = [sum(t.nbytes for _, t in mine) for mine in own]
    assert max(sizes) < 1.2 * min(sizes)
    for rank, mine in enumerate(own):
        assert write_share(tmp_path, mine, rank) is None
    assert equal(tensors_in(tmp_path), dict(tensors))
    with SavedTensors(tmp_path) as saved:
        assert len(saved.under("t")) == 0 and "t3" in saved and "t99" not in saved


def test_a_rank_that_cannot_write_goes_through_all_tensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(saved_state, "FILE_BYTES", 1)
    gone: list[int] = []

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for i in range(5):
            gone.append(i)
            yield f"t{i}", torch.zeros(3)

    problem = write_share(tmp_path / "on another node", tensors(), 3)
    assert gone == [0, 1, 2, 3, 4]
    assert isinstance(
        problem, FileNotFoundError
    ) and "the node of rank 3; expected a run_dir that all nodes share" in str(problem)


def test_what_one_rank_meets_is_raised_on_every_rank(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = saving_trainer()

    class Two(SingleProcess):
        size = 2

        def all_gather(self, value: Any) -> list[Any]:
            return [value, (errno.ENOSPC, "No space left on device")]

    monkeypatch.setattr(one.engine, "collectives", Two())
    with pytest.raises(OSError, match="rank 1: No space left") as found:
        one.save(tmp_path)
    assert found.value.errno == errno.ENOSPC, "so that the run waits for space"


@pytest.mark.parametrize("at_once", [False, True])
def test_a_full_disk_is_known_as_one(tmp_path: Path, at_once: bool) -> None:
    one = saving_trainer()
    with no_file_above(50_000), pytest.raises(OSError, match="os error 27") as found:
        one.save(tmp_path, at_once=at_once)()
    assert is_full(found.value), "so that the run waits for space"


def test_the_student_under_adapters_is_copied_as_it_is_written(tmp_path: Path) -> None:
    one = teacher_trainer(live(), lora_rank=4)
    one.files._export = ModelExport(tiny_model(seed=1), byte_tokenizer(), "bfloat16")
    one.step(random_examples(4))
    with LiveBytes([*one.student.buffers(), *one.student.parameters(), *(t for _, t in one.files._tensors())]) as made:
        rest = one.save(tmp_path)
        assert made.now <= 1.05 * sum(one.files.num_bytes())
        rest()
    assert set(load_file(tmp_path / "model.safetensors")) == set(tiny_model().state_dict()) - {"lm_head.weight"}


def test_a_model_that_is_being_written_shows_signs_of_life_as_long_as_it_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(saving, "POLL", 0.05)
    signs: list[int] = []

    def write() -> None:
        for number in range(3):
            before, until = len(signs), time.monotonic() + 60
            (tmp_path / str(number)).write_bytes(b"x")
            while len(signs) == before and time.monotonic() < until:
                time.sleep(0.01)
        time.sleep(0.5)

    saving._with_signs_of_life(write, tmp_path, lambda: signs.append(1))
    assert 3 <= len(signs) <= 5, "one for each file, and not in the half second in which nothing was written"


@pytest.mark.parametrize("family", ["qwen3", "llama", *FAMILIES])
def test_every_familys_folder_loads_to_the_last_bit(tmp_path: Path, family: str) -> None:
    model = tiny_model(family)
    ModelExport(tiny_model(family, seed=1), byte_tokenizer()).write(tmp_path, model.state_dict())
    own, found = model.state_dict(), load_causal_lm(str(tmp_path)).state_dict()
    assert found.keys() == own.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in own.items())


def test_available_memory_is_that_of_the_container(tmp_path: Path) -> None:
    meminfo = tmp_path / "meminfo"
    meminfo.write_text("MemTotal:  100 kB\nMemFree:  5 kB\nMemAvailable:   50 kB\n")
    limit, used = tmp_path / "max", tmp_path / "current"
    cgroups = ((str(limit), str(used)),)
    assert available_memory(str(meminfo), cgroups) == 50 * 1024
    limit.write_text("max\n"), used.write_text("7\n")
    assert available_memory(str(meminfo), cgroups) == 50 * 1024
    limit.write_text("1000\n")
    assert available_memory(str(meminfo), cgroups) == 993
    (tmp_path / "memory.stat").write_text("anon 5\nfile 9\ninactive_file 3\nactive_file 2\nshmem 4\n")
    assert available_memory(str(meminfo), cgroups) == 998, "what it has read is given back"
    used.write_text("2000\n")
    assert available_memory(str(meminfo), cgroups) == 0
    assert available_memory(str(tmp_path / "none"), ()) == 1 << 62
