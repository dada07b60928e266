"""Helpers that know nothing of training: files, terminal, statistics, thinking tags."""
