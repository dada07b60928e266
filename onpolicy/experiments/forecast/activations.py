"""What a pass of a model holds, measured on fake tensors: the trainer's own code runs at full size, and nothing is computed.

The model is built from its config and run on the CPU's fake tensors, since torch without CUDA cannot differentiate on those of a GPU. What
a GPU does otherwise is put in: its attention makes no matrix of queries x keys, and the head has its chunks. Temporaries inside of one
operation (a kernel's workspace) are not seen.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from onpolicy.experiments.forecast.shape import ModelSource
from onpolicy.losses.objective import Objective
from onpolicy.models import skeleton
from onpolicy.trainer.chunked_head import token_stats
from onpolicy.trainer.forward import completion_hidden
from onpolicy.trainer.head import Head, HeadLike, HiddenStates
from onpolicy.trainer.lora import LoraSettings, add_adapter
from onpolicy.trainer.micro_batches import Row
from onpolicy.trainer.prefix_sharing import (
    PackedTrees,
    forward_packed,
    pack,
    use_packed_attention,
)
from onpolicy.trainer.recompute import recomputable_layers, recompute_layers
from onpolicy.trainer.teacher import MixedHead
from onpolicy.utils.live_bytes import LiveBytes

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DeviceKind = Literal["cuda", "cpu"]
Rows = tuple[tuple[int, int], ...]
"""Lengths of prompt and completion of each row."""
LayerKind = tuple[str, tuple[tuple[str, tuple[int, ...]], ...]]
"""The type of a layer's attention, and the names and shapes of its parameters."""
MOST_ROWS = 8
"""Rows of a pass: each is an attention of its own, and memory hardly depends on their number."""


class NotMeasurable(Exception):
    """The model does not run on fake tensors; says why in one line."""


@dataclass(frozen=True)
class PassSettings:
    """What a pass depends on."""

    model: ModelSource
    device: DeviceKind
    precision: Literal["float32", "bfloat16"]
    recomputed: bool
    packed: bool
    lora_rank: int = 0
    lora_targets: tuple[str, ...] | None = None
    rounded: bool = False
    """Whether the linear layers' matrices are bfloat16 where they stand, as ZeRO-3 gathers them, or in a teacher that never changes."""
    all_rounded: bool = False
    """Whether every parameter is, as FSDP2 gathers them; states between layers then are bfloat16 too."""


@dataclass(frozen=True)
class PassBytes:
    """Bytes in addition to weights and their gradients."""

    kept: int
    """After the forward pass, for the backward pass."""
    most: int
    """At any time of both."""
    trained: int
    """Numbers in the parameters that are trained."""


def rows_of(tokens: int, prompt: int, completion: int) -> Rows:
    """Lengths of prompt and completion of each row of a micro-batch of so many tokens, in which the prompt counts once."""
    left, rows = max(tokens - prompt, 2), []
    completion = max(completion, -(-left // MOST_ROWS), 2)
    while left >= 2:
        rows.append((prompt, min(completion, left)))
        left -= completion
    return tuple(rows)


@lru_cache(maxsize=64)
def learning_pass(settings: PassSettings, rows: Rows) -> PassBytes:
    """The student's forward and backward pass over a micro-batch, up to its head, where gradients are already there.

    Layers that are like earlier ones are left out. What they would keep is there until the others have gone backward.

    Raises:
        NotMeasurable: the model does not run on fake tensors.
    """
    with _fake(settings) as (model, kinds, left_out):
        parameters = [p for p in model.parameters() if p.requires_grad]
        for parameter in parameters:
            parameter.grad = torch.empty_like(parameter)
        before = [*model.parameters(), *(p.grad for p in parameters if p.grad is not None), *model.buffers()]
        head, embedding = model.get_output_embeddings().weight, model.get_input_embeddings()
        with _FakeBytes(before) as live:
            by_kind, peak_of_layers = _watched(model, kinds, live), list[int]()

            def all_went_backward(_: Tensor) -> None:
                peak_of_layers.append(live.peak)
                live.peak = live.now

            def look(module: nn.Module, inputs: Any, output: Tensor) -> None:
                if output.requires_grad:
                    output.register_hook(all_went_backward)

            embedding.register_forward_hook(look)
            hidden = _hidden(model, settings, rows)
            kept = live.now
            # the gradient of a tied matrix has two summands, and the head's waits for the embedding's
            waits = torch.empty_like(head) if head is embedding.weight and head.requires_grad else None
            hidden.backward(torch.empty_like(hidden))  # type: ignore[no-untyped-call]
            del waits
        of_kind = {
            kind: sum(p.numel() for p in layer.parameters() if p.requires_grad)
            for kind, layer in zip(kinds, recomputable_layers(model), strict=True)
        }
        more = sum(by_kind[kind] for kind in left_out)
        layers = [peak + more for peak in peak_of_layers or [live.peak]]
        most = max(*layers, live.peak)
        return PassBytes(
            kept + more, most, sum(p.numel() for p in parameters) + sum(of_kind[kind] for kind in left_out)
        )


def _watched(model: PreTrainedModel, kinds: Sequence[LayerKind], live: LiveBytes) -> dict[LayerKind, int]:
    """By kind of layer, what the last of them keeps, known after the forward pass."""
    found, started = dict[LayerKind, int](), list[int]()
    for kind, layer in zip(kinds, recomputable_layers(model), strict=True):

        def ends(*_: Any, kind: LayerKind = kind) -> None:
            found[kind] = live.now - started.pop()

        layer.register_forward_pre_hook(lambda *_: started.append(live.now))
        layer.register_forward_hook(ends)
    return found


@lru_cache(maxsize=64)
def scoring_pass(settings: PassSettings, rows: Rows) -> int:
    """Bytes at any time of a teacher's pass, which keeps no graph, in addition to its weights.

    Raises:
        NotMeasurable: the model does not run on fake tensors.
    """
    with _fake(settings) as (model, *_), torch.no_grad(), _FakeBytes([*model.parameters(), *model.buffers()]) as live:
        _hidden(model, settings, rows)
        return live.peak


@dataclass(frozen=True)
class TeacherHeads:
    """The heads beside the student's."""

    by_context: tuple[tuple[str, Literal["student", "float32", "bfloat16"]], ...]
    """Context, or REF -> whose matrix its logits come from: the student's, or one of its own in this dtype."""
    student_share: float = 0.0
    """Above 0: the teachers' logits are mixed with the student's."""


def head_pass(
    objective: Objective,
    heads: TeacherHeads,
    size: tuple[int, int, int],
    *,
    trained: bool,
    bfloat16: bool,
    device: DeviceKind,
    rounded: bool = False,
) -> float:
    """Bytes at any time of the chunked head's forward and backward pass, in addition to its matrices and the hidden states.

    Args:
        objective: what is compared
        heads: of the teachers and the reference model
        size: vocabulary V, width H, and the tokens N
        trained: whether the head's matrix has a gradient
        bfloat16: whether it runs in bfloat16
        device: whose chunks and slices these are
        rounded: whether the student's matrix and its gradient are in bfloat16, as FSDP2 gathers them

    Raises:
        NotMeasurable: a comparison does not run on fake tensors.
    """
    vocabulary, width, tokens = size
    dtype = torch.bfloat16 if bfloat16 else torch.float32
    with _fake_tensors():
        kept = torch.bfloat16 if rounded else torch.float32
        student = Head(nn.Parameter(torch.empty(vocabulary, width, dtype=kept), requires_grad=trained))
        own: dict[str, Head] = {"student": student} | {
            name: Head(torch.empty(vocabulary, width, dtype=getattr(torch, name)))
            for name in {whose for _, whose in heads.by_context} - {"student"}
        }
        teachers: dict[str, HiddenStates] = {}
        for context, whose in heads.by_context:
            head: HeadLike = own[whose]
            columns = width * (2 if heads.student_share else 1)
            if heads.student_share:
                head = MixedHead(head, student, heads.student_share, width)
            teachers[context] = HiddenStates(torch.empty(tokens, columns, dtype=dtype), head)
        hidden = torch.empty(tokens, width, requires_grad=True, dtype=kept)
        ids = torch.zeros(tokens, dtype=torch.long)
        before = [hidden, ids, *(s.hidden for s in teachers.values())]
        before += [h.weight for h in own.values() if h.weight is not None]
        with _FakeBytes(before) as live:
            with torch.autocast("cpu", torch.bfloat16, enabled=bfloat16, cache_enabled=False):
                stats = token_stats(
                    HiddenStates(hidden, student),
                    teachers,
                    ids,
                    objective.comparisons,
                    temperatures=objective.temperatures,
                    device=torch.device(device),
                )
            chosen = [stats.logprobs, *(s.logprobs for s in stats.tempered.values()), *stats.divergences.values()]
            torch.stack(chosen).sum().backward()  # type: ignore[no-untyped-call]
        return live.peak


class _FakeBytes(LiveBytes):
    """Does what fake tensors cannot: ``nonzero`` finds every entry, and products by expert have any dtype."""

    def run(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Any:
        if func is torch.ops.aten.nonzero.default:
            return torch.stack(
                [x.flatten() for x in torch.meshgrid(*map(torch.arange, args[0].shape), indexing="ij")], -1
            )
        if func is torch.ops.aten._grouped_mm.default:
            one, other = args[:2]
            ends = args[2] if len(args) > 2 else kwargs["offs"]
            groups = [len(ends)] if one.dim() == other.dim() == 2 else []
            return one.new_empty(*groups, one.shape[-2], other.shape[-1])
        return super().run(func, args, kwargs)


@dataclass(frozen=True)
class _FakeTrees(PackedTrees):
    """Attention with the tensors that it has on a device; a bias of torch's own class cannot be made of fake ones."""

    masked: bool
    """Whether completions have a mask, which torch makes of such a bias on the CPU alone."""

    def one(self, query: Tensor, key: Tensor, value: Tensor, *, scale: float | None, window: int | None) -> Tensor:
        queries, keys = query.shape[2], key.shape[2]
        if window is not None and window < keys:
            return super().one(query, key, value, scale=scale, window=window)
        if queries == keys or not self.masked:
            return scaled_dot_product_attention(query, key, value, is_causal=True, scale=scale)
        mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)
        return scaled_dot_product_attention(query, key, value, attn_mask=mask, scale=scale)


def _hidden(model: PreTrainedModel, settings: PassSettings, rows: Rows) -> Tensor:
    """``[N, H]``, as the trainer gets them."""

    def body(**inputs: object) -> object:
        with torch.autocast("cpu", torch.bfloat16, enabled=settings.precision == "bfloat16", cache_enabled=False):
            return model.base_model(**inputs)

    filled: list[Row] = [((1,) * prompt, (2,) * completion) for prompt, completion in rows]
    if not settings.packed:
        return completion_hidden(model, filled, layout="padded", body=body)
    packed, ids, positions, columns = pack(filled)
    trees = _FakeTrees(packed.trees, masked=settings.device == "cpu")
    return forward_packed(body, trees, torch.tensor(ids), torch.tensor(positions))[torch.cat(columns)]


@contextmanager
def _fake_tensors() -> Iterator[None]:
    """Inside, nothing is computed."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True  # it logs the traceback of what is raised
    try:
        with FakeTensorMode(allow_non_fake_inputs=True):  # type: ignore[no-untyped-call]
            yield
    except Exception as error:  # whatever a model's own code makes of tensors without values
        raise NotMeasurable(f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}") from error
    finally:
        log.disabled = before


@contextmanager
def _fake(settings: PassSettings) -> Iterator[tuple[PreTrainedModel, list[LayerKind], list[LayerKind]]]:
    """A student without weights, the kinds of its layers, and those of the layers that were left out. Inside, nothing is computed."""
    source = settings.model
    model = skeleton(source.path, trust_remote_code=source.trust_remote_code, revision=source.revision).eval()
    kinds = _kinds(model)
    number = _shorten(model, kinds)
    if settings.lora_rank:
        add_adapter(model, LoraSettings(settings.lora_rank, targets=settings.lora_targets))
    if settings.packed:
        use_packed_attention(model)
    if settings.recomputed:
        recompute_layers(model)
    with _fake_tensors():
        whole = torch.bfloat16 if settings.all_rounded else torch.float32
        _replace_by_fakes(model, torch.bfloat16 if settings.rounded else whole, whole)
        yield model, kinds[:number], kinds[number:]


def _kinds(model: PreTrainedModel) -> list[LayerKind]:
    """Of each layer, what its memory depends on."""
    types = getattr(model.config.get_text_config(), "layer_types", None) or []
    layers = recomputable_layers(model)
    types = types if len(types) >= len(layers) else [""] * len(layers)
    return [
        (str(kind), tuple((name, tuple(p.shape)) for name, p in layer.named_parameters()))
        for kind, layer in zip(types, layers, strict=False)
    ]


def _shorten(model: PreTrainedModel, kinds: Sequence[LayerKind]) -> int:
    """Leaves out the last layers, as far as each is like two before it; returns how many are left."""
    needed = max(([i for i, k in enumerate(kinds) if k == kind][:2][-1] + 1 for kind in set(kinds)), default=0)
    layers = recomputable_layers(model)
    for parent in [*model.base_model.modules()]:
        for name, child in parent.named_children():
            if isinstance(child, nn.ModuleList) and [*child] == layers:
                setattr(parent, name, child[:needed])
                model.config.get_text_config().num_hidden_layers = needed
                return needed
    return len(kinds)


def _replace_by_fakes(model: nn.Module, linear: torch.dtype, others: torch.dtype) -> None:
    """Empty tensors of the active mode in the place of those on the meta device, by dtype of linear layers' matrices and of the others."""
    found: dict[Tensor, Tensor] = {}
    tables = {p for m in model.modules() if isinstance(m, nn.Embedding) for p in m.parameters(recurse=False)}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if parameter not in found:
                dtype = linear if type(module) is nn.Linear and parameter not in tables else others
                found[parameter] = nn.Parameter(torch.empty(parameter.shape, dtype=dtype), parameter.requires_grad)
            module._parameters[name] = found[parameter]  # type: ignore[assignment]
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)
