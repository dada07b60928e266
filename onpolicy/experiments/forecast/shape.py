"""The sizes of a model that decide its cost, read without its weights."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from onpolicy.config.schema import ModelSettings
from onpolicy.models import resolve_model, skeleton
from onpolicy.trainer.frozen_weights import roundable
from onpolicy.trainer.prefix_sharing import supports_prefix_sharing
from onpolicy.trainer.recompute import recomputable_layers


@dataclass(frozen=True)
class ModelSource:
    """Where a model's config is read."""

    path: str
    trust_remote_code: bool = False
    revision: str | None = None


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a model that decide its cost."""

    parameters: int
    layers: int
    hidden: int
    width: int
    """Attention heads times their size."""
    kv_width: int
    """Key-value heads times their size."""
    vocabulary: int
    windowed: int = 0
    """Layers that attend to the last ``window`` tokens only."""
    window: int = 0
    experts: bool = False
    """Whether it is a mixture of experts: a token passes through some of the parameters only."""
    rounded: int = 0
    """Parameters that a copy which never changes may keep in bfloat16, because the checkpoint does."""
    matrices: int = 0
    """Parameters in the matrices of linear layers, without the head."""
    tied: bool = False
    """Whether the head's matrix is the embedding."""
    packable: bool = True
    """Whether rows can run as one without padding."""
    recomputable: bool = True
    """Whether it has layers that can be recomputed."""
    source: ModelSource | None = None
    """Where it can be built from; None: nowhere."""

    def kv_bytes(self, length: float) -> float:
        """Bytes of the keys and values of one sequence, in bfloat16."""
        full = self.layers - self.windowed
        return 2 * 2 * self.kv_width * (full * length + self.windowed * min(length, self.window))

    def flops(self, tokens: float, length: float) -> float:
        """Operations of one forward pass over ``tokens`` tokens in sequences of length ``length``."""
        near = min(length, self.window)
        attended = (self.layers - self.windowed) * length / 2 + self.windowed * (near - near**2 / (2 * length))
        return tokens * (2.0 * self.parameters + 4.0 * self.width * attended)


def shape_of(source: str, *, trust_remote_code: bool = False, revision: str | None = None) -> ModelShape:
    """The shape of a model, from its folder or hub id, or from a ``config.json``; no weights are read."""
    model = skeleton(source, trust_remote_code=trust_remote_code, revision=revision)
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    windowed = (getattr(config, "layer_types", None) or []).count("sliding_attention")
    head, table = model.get_output_embeddings().weight, model.get_input_embeddings().weight
    linear = {m.weight for m in model.modules() if isinstance(m, nn.Linear)} - {head, table}
    in_bfloat16 = str(config.dtype) in ("bfloat16", "torch.bfloat16")
    return ModelShape(
        parameters=sum(p.numel() for p in model.parameters()),
        layers=config.num_hidden_layers,
        hidden=config.hidden_size,
        width=heads * size,
        kv_width=(getattr(config, "num_key_value_heads", None) or heads) * size,
        vocabulary=config.vocab_size,
        windowed=windowed,
        window=config.sliding_window if windowed else 0,
        experts=any(hasattr(config, name) for name in ("num_experts", "num_local_experts", "n_routed_experts")),
        rounded=sum(p.numel() for p in roundable(model)) if in_bfloat16 else 0,
        matrices=sum(p.numel() for p in linear),
        tied=head is table,
        packable=supports_prefix_sharing(model),
        recomputable=bool(recomputable_layers(model)),
        source=ModelSource(source, trust_remote_code, revision),
    )


def shape_of_model(settings: ModelSettings) -> ModelShape:
    """The shape of a config's model; raises ModelError where it has none that can be read."""
    path = resolve_model(settings.path)
    return shape_of(path, trust_remote_code=settings.trust_remote_code, revision=settings.revision)
