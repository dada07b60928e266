"""Off-policy self-distillation: collect completions, then train on them."""
