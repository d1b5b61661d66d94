"""Tests of the fetcher package; they mirror its modules."""
