"""The lab's tokenizer: one token per word, for every word of its tasks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from onpolicy.experiments.lab import interpreter, partial, route, sums
from onpolicy.experiments.lab.problem import AGAIN, ANSWER, HINT, NO, SO, TRY, YES

SPECIAL = ("<pad>", "<unk>", "<end>", "<user>", "<assistant>")
TEMPLATE = (
    "{% for m in messages %}<{{ m['role'] }}> {{ m['content'] }} <end> {% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)


def vocabulary() -> list[str]:
    """Words in the order of their ids."""
    places = [place for name in route.MAPS for place in route.exits(name)]
    numbers = map(str, range(2 * sums.LARGEST + 1))
    words = ["map", "from", "to", "in", "sees", "add", "+", "=", *TRY, *AGAIN, NO, YES, SO, ANSWER, HINT]
    return [*SPECIAL, *words, *route.MAPS, *numbers, *places]


def vocabulary_with_programs() -> list[str]:
    """The same words with the same ids, and behind them those of the interpreter's task."""
    return [*vocabulary(), *interpreter.WORDS]


def vocabulary_with_partial() -> list[str]:
    """The same words with the same ids, and behind them those of the tasks of which a reasoner knows part."""
    known = vocabulary()
    places, numbers = route.exits(route.PARTIAL_MAP), map(str, range(2 * (sums.LARGEST + partial.LARGER) + 1))
    return [*known, *(word for word in (route.PARTIAL_MAP, *numbers, *places) if word not in known)]


def write_tokenizer(folder: Path, words: Sequence[str]) -> None:
    """``tokenizer.json`` and its settings, as transformers and vLLM read them."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: i for i, word in enumerate(words)}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="<pad>",
        unk_token="<unk>",
        eos_token="<end>",
        additional_special_tokens=["<user>", "<assistant>"],
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = TEMPLATE
    tokenizer.save_pretrained(folder)
