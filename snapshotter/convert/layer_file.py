"""Converting the file of one layer to another file."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable

from fetcher.convert import Compressors, ConvertedLayer, LayerFormat, LayerOptions, convert_layer
from fetcher.images.writing import appearing, require_replaceable, writing
from snapshotter.convert.once import adding_up, run_stoppable
from snapshotter.convert.scratch import scratch_errors

_MAGICS = {LayerFormat.ESTARGZ: b"\x1f\x8b", LayerFormat.ZSTD_CHUNKED: b"\x28\xb5\x2f\xfd"}


def check_layer_target(target: str, layer_format: LayerFormat) -> None:
    """See that `target` is free, or a layer of the format. Raises DestinationUnusable, StoreError."""
    magic = _MAGICS[layer_format]
    require_replaceable(target, f"layer in {layer_format.value}", lambda head: head.startswith(magic))


async def convert_layer_file(
    source: str,
    target: str,
    options: LayerOptions,
    *,
    compressors: Compressors,
    scratch: str,
    done: Callable[[int], None],
) -> ConvertedLayer:
    """Convert the layer in the file `source`, whatever it is compressed with, to the file `target`.

    `done` is told the bytes of the source that are done, from a thread. Raises DestinationUnusable, any other
    FetchError.
    """
    check_layer_target(target, options.format)

    def work(check: Callable[[], None]) -> ConvertedLayer:
        converted = os.path.join(scratch, "layer")
        with scratch_errors(scratch):
            layer = convert_layer(
                source,
                converted,
                options,
                compressors=compressors,
                scratch=scratch,
                progress=adding_up(check, done),
            )
        with writing(target), appearing(target) as temporary:
            shutil.copyfile(converted, temporary)
        return layer

    return await run_stoppable(work)
