"""Rollout groups to examples: scores, what the teacher sees, credit, routes, spans."""
