"""What stands behind scripts/demo and scripts/bench."""
