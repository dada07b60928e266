"""Environments of the library verifiers: their problems, their conversations and their rubrics."""
