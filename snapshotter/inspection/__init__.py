"""Looking into images, wherever they are: `layergate toc` and `layergate compare`."""

from __future__ import annotations
