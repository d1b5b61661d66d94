"""Tests of layergate, with the builders and comparisons that they share."""
