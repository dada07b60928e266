"""The lab: procedural problems on which doubt has a function, and a reasoner small enough to train in minutes (docs/lab.md)."""
