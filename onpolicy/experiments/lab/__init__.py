"""The lab: problems on which expressed uncertainty has a function, and a reasoner small enough to train in minutes (docs/lab.md)."""
