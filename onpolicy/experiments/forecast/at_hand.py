"""The forecast of a run whose model lies on this machine: no network, no weights, nothing converted."""

from __future__ import annotations

from pathlib import Path

from onpolicy.config.resolved import ResolvedConfig
from onpolicy.config.schema import ModelSettings
from onpolicy.experiments.forecast.forecast import Assumptions, Forecast, forecast
from onpolicy.experiments.forecast.shape import shape_of
from onpolicy.models import resolve_model
from onpolicy.utils.bundled_model import BUNDLED, cache_folder


def forecast_at_hand(resolved: ResolvedConfig) -> Forecast | None:
    """The forecast with the usual assumptions; None where the model would have to be fetched or converted first.

    Raises:
        ModelError: the model's path does not exist, or holds no model.
    """
    folder = folder_at_hand(resolved.config.model)
    if folder is None:
        return None
    shape = shape_of(str(folder), trust_remote_code=resolved.config.model.trust_remote_code)
    return forecast(resolved, shape, Assumptions())


def folder_at_hand(settings: ModelSettings) -> Path | None:
    """Where a model's config.json lies on this machine; None where it would have to be fetched or converted.

    Raises:
        ModelError: the model's path does not exist, or holds no model.
    """
    from huggingface_hub import try_to_load_from_cache

    folder = cache_folder() / BUNDLED if settings.path == BUNDLED else Path(resolve_model(settings.path))
    if (folder / "config.json").is_file():
        return folder
    try:
        cached = try_to_load_from_cache(settings.path, "config.json", revision=settings.revision)
    except ValueError:  # no hub has a model of this name
        return None
    return Path(cached).parent if isinstance(cached, str) else None
