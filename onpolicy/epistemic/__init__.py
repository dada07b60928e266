"""Expressed uncertainty, token by token."""
