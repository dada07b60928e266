"""Questions that are asked of a config or a model rather than while training."""
