"""One run: assembly, preflight, evaluation, guards, logs, checkpoints, resuming."""
