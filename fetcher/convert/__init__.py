"""From a tar to a layer that can be read lazily: eStargz, or zstd:chunked as stargz-snapshotter has it.

    options = LayerOptions(format=LayerFormat.ESTARGZ, prioritized=("usr/bin/python3.11",))
    with Compressors() as compressors:
        layer = convert_layer(source, target, options, compressors=compressors, scratch=directory)

Each is an ordinary layer to a client that knows nothing of it, unpacks to what its source unpacks to, and is
the same to the byte however many processes made it.
"""

from fetcher.convert.compressors import Compressors
from fetcher.convert.layer import convert_layer
from fetcher.convert.options import (
    CHUNK_SIZE,
    DEFAULT_LEVELS,
    LEVELS,
    SIZE_LIMIT,
    ConvertedLayer,
    LayerFormat,
    LayerOptions,
)

__all__ = [
    "CHUNK_SIZE",
    "DEFAULT_LEVELS",
    "LEVELS",
    "SIZE_LIMIT",
    "Compressors",
    "ConvertedLayer",
    "LayerFormat",
    "LayerOptions",
    "convert_layer",
]
