"""How `layergate convert` has each layer converted. On the event loop.

A layer that is in the wanted format already stays as it is, bytes and digest, unless it was said how layers
are to be made: what is there may have been put in order for prefetching, and another conversion would cost
that.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from anyio import to_thread

from fetcher.access_order import access_order
from fetcher.convert import LayerFormat, LayerOptions
from fetcher.errors import FormatError, VerificationError
from fetcher.logs import get_logger
from fetcher.manifest import Descriptor, promised_toc
from fetcher.opening import fetch_toc
from fetcher.record import OpenedFile
from snapshotter.convert.media import UNCOMPRESSED_SIZE
from snapshotter.convert.once import Once
from snapshotter.convert.source_image import SourceImage
from snapshotter.optimize.inflating import list_layer

log = get_logger("layergate.convert")


class LayerChoice:
    """Converts every layer by `options`, or leaves those alone that are in the format, unless `rebuild`.

    Each layer begins with those of `files` that containers of the image find in it, in their order.
    """

    def __init__(self, options: LayerOptions, *, files: Sequence[OpenedFile] = (), rebuild: bool) -> None:
        self._options = options
        self._files = files
        self._rebuild = rebuild or bool(files)
        self._orders: Once[str, tuple[tuple[str, ...], ...]] = Once()

    async def __call__(self, image: SourceImage, number: int) -> LayerOptions | None:
        """See OptionsFor. Raises FetchError."""
        if not self._rebuild and await is_in_format(image, number, self._options.format):
            return None
        if not self._files:
            return self._options
        orders = await self._orders.get(image.manifest.digest, lambda: self._order(image))
        return dataclasses.replace(self._options, prioritized=orders[number] or None)

    async def _order(self, image: SourceImage) -> tuple[tuple[str, ...], ...]:
        trees = []
        for number in range(len(image.layers)):
            trees.append(await to_thread.run_sync(list_layer, await image.fetch(number)))
        order = access_order(self._files, trees, chunk_size=self._options.chunk_size)
        for path in order.unknown:
            log.warning("prioritized_path_not_in_image", path=path, image=image.manifest.digest)
        return order.layers


async def is_in_format(image: SourceImage, number: int, wanted: LayerFormat) -> bool:
    """Whether a layer is in the format, with all that its descriptor should say of it. Raises FetchError."""
    layer = image.layers[number]
    promised = promised_toc(layer.annotations)
    if promised is None or (wanted is LayerFormat.ESTARGZ and not _has_size(layer)):
        return False
    try:
        toc = await fetch_toc(image.blob(number), size=layer.size, promised=promised)
    except (FormatError, VerificationError):
        return False
    return toc.zstd == (wanted is LayerFormat.ZSTD_CHUNKED)


def _has_size(layer: Descriptor) -> bool:
    return layer.annotations.get(UNCOMPRESSED_SIZE, "").isdecimal()
