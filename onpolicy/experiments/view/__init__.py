"""``onpolicy view``: the report of runs while they train, served on loopback."""
