"""How completions are drawn; the fields every generator has."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass
class Sampling:
    """Sampling of one step; ``generator.<field>`` in the config."""

    group_size: int = field(default=8, metadata={"help": "rollouts per prompt"})
    max_tokens: int = field(default=256, metadata={"help": "longest completion, in tokens"})
    temperature: float = field(default=1.0, metadata={"help": "0: greedy"})
    top_p: float = field(default=1.0, metadata={"help": "nucleus; 1: off"})
    top_k: int = field(default=0, metadata={"help": "likeliest tokens to draw from; 0: off"})
    staleness: int = field(
        default=0,
        metadata={
            "help": "how many versions older than the weights being trained those may be that sampled a token: rollouts of "
            "so many steps to come are sampled while this one is trained (`importance_cap` of the terms corrects for it); "
            "pays where the generator has a device of its own; 0: on-policy"
        },
    )

    def __post_init__(self) -> None:
        wanted = {
            "group_size": (self.group_size, self.group_size >= 1, "at least 1"),
            "max_tokens": (self.max_tokens, self.max_tokens >= 1, "at least 1"),
            "temperature": (self.temperature, self.temperature >= 0, "0 or more"),
            "top_p": (self.top_p, 0 < self.top_p <= 1, "above 0 and at most 1"),
            "top_k": (self.top_k, self.top_k >= 0, "0 or more"),
            "staleness": (self.staleness, self.staleness >= 0, "0 or more"),
        }
        for name, (value, fine, want) in wanted.items():
            if not fine:
                raise ValueError(f"generator.{name}: got {value}, wanted {want}")
