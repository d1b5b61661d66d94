"""Whole images: where they are read from and where they are written to."""

from __future__ import annotations

from fetcher.images.seams import ImageDestination, ImageSource

__all__ = ["ImageDestination", "ImageSource"]
