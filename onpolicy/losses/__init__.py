"""Comparing two next-token distributions: where (support), by how much (divergence)."""
