"""Imported last by the fork server: what is loaded there is left alone by its children's garbage collector.

One look of the collector at all objects writes to their headers, and each child would have 11 MB of its own.
"""

from __future__ import annotations

import gc

gc.collect()
gc.freeze()
