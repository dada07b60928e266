"""verl's FSDP2 engines on a CPU."""

from __future__ import annotations

from typing import Any

from verl.workers.engine.base import EngineRegistry

from tests.integrations.verl.rig.flash_attention import install


def on_cpu(engine_class: type) -> type:
    """The engine, without offloading a forward-only model: there is nowhere to put it, and no memory to pin."""

    class OnCPU(engine_class):  # type: ignore[misc, valid-type]
        def _build_module(self) -> Any:
            install()
            return super()._build_module()

        def _build_fsdp_module(self, module: Any) -> Any:
            config = self.engine_config
            forward_only, config.forward_only = config.forward_only, False
            try:
                return super()._build_fsdp_module(module)
            finally:
                config.forward_only = forward_only

    OnCPU.__name__ = OnCPU.__qualname__ = f"{engine_class.__name__}OnCPU"
    return OnCPU


def register(engine_class: type, vendor: str | None = None) -> None:
    """For language models under ``strategy=fsdp2``; with a vendor where ``VERL_ENGINE_VENDOR`` asks for it."""
    EngineRegistry.register("language_model", "fsdp2", "cpu", vendor)(on_cpu(engine_class))
