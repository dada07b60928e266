"""``onpolicy doctor verl``: whether the plug-in is there, in the driver and in Ray's workers; verl itself hides it if not."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import traceback
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, entry_points, requires

from packaging.requirements import Requirement

from onpolicy.distributed.ray_cluster import probe_address
from onpolicy.integrations.verl.command import quiet
from onpolicy.run.doctor import Check, installed_version
from onpolicy.utils.ready import DISTRIBUTION, extra

NEEDED = ("verl", "TransferQueue", "ray", "tensordict", "transformers")
POLICY = "VERL_USE_EXTERNAL_PLUGINS"


def checks() -> Iterator[Check]:
    """In the order in which one depends on the other; ends where the next could not work."""
    quiet()
    for name in NEEDED:
        found = installed_version(name)
        if found is None:
            yield Check(
                name,
                False,
                "not installed",
                f"make verl, or {extra('verl')}, in an environment of its own",
            )
            return
        needed = _requirement(name)
        fits = needed is None or needed.specifier.contains(found)
        yield Check(name, fits, found, f"pip install '{needed}'")
    policy = os.environ.get(POLICY, "auto")
    allowed = policy.lower() == "auto" or "onpolicy" in policy.split(",")
    yield Check(POLICY, allowed, policy, f"unset it, or {POLICY}=onpolicy", needed=True)
    known = any(point.name == "onpolicy" for point in entry_points(group="verl.plugins"))
    yield Check(
        "entry point verl.plugins",
        known,
        "onpolicy" if known else "missing",
        f"install {DISTRIBUTION} with pip (also -e), not by PYTHONPATH",
    )
    problem = loaded()
    yield Check(
        "plug-in in this process",
        not problem,
        problem or "registered",
        "the error is verl's or ours; see its last line",
    )
    if problem:
        return
    problem = _in_a_worker()
    yield Check(
        "plug-in in a Ray worker",
        not problem,
        problem or "registered",
        f"install {DISTRIBUTION} on every node of the cluster",
    )


def loaded() -> str:
    """Empty where verl knows our names; else why not. Runs in any process."""
    try:
        importlib.import_module("verl")
        importlib.import_module("onpolicy.integrations.verl.plugin")
        from verl.trainer.ppo.v1.trainer_base import TRAINER_REGISTRY
        from verl.workers.engine.base import EngineRegistry

        from onpolicy.integrations.verl.names import MODE, VENDOR

        missing = [] if MODE in TRAINER_REGISTRY else [f"trainer mode {MODE}"]
        engines = EngineRegistry._engines["language_model"].get("fsdp2", {})
        missing += (
            [] if any(VENDOR in key for key in engines if isinstance(key, tuple)) else [f"engine of vendor {VENDOR}"]
        )
        return f"missing: {', '.join(missing)}" if missing else ""
    except Exception as error:
        return traceback.format_exception_only(error)[-1].strip()


def _in_a_worker() -> str:
    """Asks one, on the cluster that main_ppo would find: RAY_ADDRESS's, this machine's, or else one of its own."""
    import ray

    try:
        _connect()
        # none of its CPUs: a cluster may be at work on something else
        answer: str = ray.get(ray.remote(loaded).options(num_cpus=0).remote(), timeout=180)
        return answer
    except Exception as error:
        return traceback.format_exception_only(error)[-1].strip()
    finally:
        ray.shutdown()


def _connect() -> None:
    import ray

    address = os.environ.get("RAY_ADDRESS", "")
    try:
        probe_address(address)
    except OSError as error:
        raise ConnectionError(f"RAY_ADDRESS={address}: {error}") from error
    try:
        ray.init("auto", log_to_driver=False, logging_level=logging.ERROR)
    except ConnectionError:
        if address:
            raise
        ray.init("local", log_to_driver=False, logging_level=logging.ERROR, include_dashboard=False, num_cpus=1)


def _requirement(name: str) -> Requirement | None:
    """What we and verl ask for, together; None where neither does."""
    found = []
    for package in (DISTRIBUTION, "verl"):
        with contextlib.suppress(PackageNotFoundError):
            found += [Requirement(text) for text in requires(package) or []]
    ours = [r for r in found if r.name.lower() == name.lower() and (name == "verl" or "extra" not in str(r.marker))]
    return Requirement(f"{name}{','.join(str(r.specifier) for r in ours if str(r.specifier))}") if ours else None
