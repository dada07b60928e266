"""What unmodified verl lacks to run on a CPU: a platform, engines registered for it, and rollout servers made of transformers.

verl imports this in each of its processes: ``VERL_USE_EXTERNAL_MODULES=tests.integrations.verl.rig VERL_PLATFORM=cpu``.
"""

from __future__ import annotations

from verl.plugin.platform.platform_manager import PlatformRegistry

from tests.integrations.verl.rig.platform import PlatformCPU

PlatformRegistry.register("cpu")(PlatformCPU)  # before verl's engines are imported, which ask for it at once

from tests.integrations.verl.rig import registries as registries  # noqa: E402
