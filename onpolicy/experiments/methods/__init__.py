"""Configs side by side: what a method chooses on each axis, and how two configs differ."""
