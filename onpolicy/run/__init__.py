"""One run: assembling its parts, preflight checks, evaluation, guards, logs, checkpoints, resuming."""
