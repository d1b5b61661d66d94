"""Faults that a node has to survive: a short form of each in CI, and as long as asked by scripts/soak."""
