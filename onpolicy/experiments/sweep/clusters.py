"""Which cluster a sweep's options name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from onpolicy.experiments.sweep.processes import Runs
from onpolicy.experiments.sweep.slurm_runs import SlurmRuns
from onpolicy.experiments.sweep.slurm_settings import read_settings


def cluster(
    output: Path, slurm: Sequence[str] | None, ray: str | None, cpus: int, gpus: float | None
) -> Callable[[], Runs] | None:
    """Opens the place where the runs of a sweep are executed; None: processes of this machine.

    Args:
        output: of the sweep
        slurm: settings of Slurm's jobs
        ray: address of a Ray cluster
        cpus: of a run on Ray
        gpus: of a run on Ray; None: one if there are any
    """
    if slurm is not None:
        settings = read_settings(slurm)
        return lambda: SlurmRuns(output, settings)
    if ray is None:
        return None

    def on_ray() -> Runs:
        from onpolicy.experiments.sweep.ray_runs import RayRuns

        return RayRuns(ray, cpus=cpus, gpus=gpus)

    return on_ray
