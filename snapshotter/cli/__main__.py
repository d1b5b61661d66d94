"""`python -m snapshotter.cli`, for a checkout that is not installed."""

from snapshotter.cli import main

main()
