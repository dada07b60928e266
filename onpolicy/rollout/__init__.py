"""Prompts to rollout groups: vLLM, transformers, or the completions of a dataset."""
