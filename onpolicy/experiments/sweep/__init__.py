"""Grids of runs: planned once, run in processes or over Ray, compared in pairs."""
