"""YAML files that hydra finds by this package's name."""
