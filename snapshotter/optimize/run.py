"""How `layergate optimize` has each layer converted: beginning with what the image's workload opened.

On the event loop. The layers come as files from the conversion, whose hook this is (`OptionsFor`); before the
first of them is converted all are fetched, unpacked and run, unless there are records already.
"""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Final

import anyio
import msgspec
from anyio import to_thread

import snapshotter
from fetcher.access_order import AccessOrder, access_order
from fetcher.convert import LayerOptions
from fetcher.errors import FormatError, StoreError
from fetcher.record import Record, merge_records
from snapshotter.convert.once import Once
from snapshotter.convert.source_image import SourceImage
from snapshotter.optimize.errors import SandboxRefused, WorkloadFailed
from snapshotter.optimize.inflating import list_layer
from snapshotter.optimize.sandbox import Ending, Ran, Run, make_lower, record_of, run_sandbox
from snapshotter.optimize.scratch import Scratch, scratch_directory
from snapshotter.optimize.spec import Workload, arguments, parse_config, runtime_spec
from snapshotter.optimize.unpack import Refused, Unpacked

_PACKAGES: Final = os.path.dirname(os.path.dirname(os.path.abspath(snapshotter.__file__)))
_REPLIES: Final[msgspec.json.Decoder[Unpacked | Refused]] = msgspec.json.Decoder(Unpacked | Refused)
_SAID: Final = 300
"""Characters of a workload's last words in an error."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Wish:
    """What to record. With `records` alone nothing is run; with `run` too, both count, the run first.

    `period` in seconds; `line` is what the workload's output is searched for, to end it then. `scratch` is a
    directory with room for the unpacked image.
    """

    name: str
    workload: Workload
    period: float = 10.0
    line: str | None = None
    records: Sequence[Record] = ()
    run: bool = True
    scratch: str
    output: Callable[[bytes], object] = lambda data: None
    """Takes what the workload writes, as it comes."""
    recorded: Callable[[Record], object] = lambda record: None
    """Takes the record that the layers are put in order by, before they are. Blocking."""


class Optimization:
    """Converts every layer by `options`, each beginning with what was opened of it, in that order."""

    def __init__(self, options: LayerOptions, wish: Wish) -> None:
        self.record: Record | None = None
        """What the layers were put in order by, once that is known."""
        self.ran: Ran | None = None
        self.orders: dict[str, AccessOrder] = {}
        """By manifest digest."""
        self._options = options
        self._wish = wish
        self._orders: Once[str, AccessOrder] = Once()
        self._records: Once[None, Record] = Once()

    async def __call__(self, image: SourceImage, number: int) -> LayerOptions:
        """See OptionsFor. Raises FetchError, OptimizeError, MounterError."""
        order = await self._orders.get(image.manifest.digest, lambda: self._order(image))
        return dataclasses.replace(self._options, prioritized=order.layers[number] or None)

    async def _order(self, image: SourceImage) -> AccessOrder:
        paths = [await image.fetch(number) for number in range(len(image.layers))]
        record = await self._records.get(None, lambda: self._record(image, paths))
        trees = [await to_thread.run_sync(list_layer, path) for path in paths]
        order = access_order(record.files, trees, chunk_size=self._options.chunk_size)
        self.orders[image.manifest.digest] = order
        return order

    async def _record(self, image: SourceImage, layers: Sequence[str]) -> Record:
        wish = self._wish
        ran = [await self._run(image, layers)] if wish.run else []
        record = self.record = merge_records([*ran, *wish.records])
        await to_thread.run_sync(wish.recorded, record)
        return record

    async def _run(self, image: SourceImage, layers: Sequence[str]) -> Record:
        wish = self._wish
        config = parse_config(image.config.data)
        command = arguments(config, wish.workload)  # before an image is unpacked that has none
        with ExitStack() as stack:
            scratch = await to_thread.run_sync(stack.enter_context, scratch_directory(wish.scratch))
            accounts = await unpack_layers(scratch, layers)
            spec = runtime_spec(
                config, wish.workload, root="root", passwd=accounts.passwd, group=accounts.group
            )
            started = time.time()
            ran = self.ran = await run_sandbox(
                scratch, Run(spec=spec, period=wish.period, line=wish.line, output=wish.output)
            )
        if ran.ending is Ending.BY_ITSELF and ran.status:
            said = f": {ran.said[-_SAID:]}" if ran.said else ""
            raise WorkloadFailed(
                f"the workload ended with exit status {ran.status} after {ran.seconds:.1f} s{said}",
                status=ran.status,
            )
        return record_of(ran, image=wish.name, command=command, started=started)


async def unpack_layers(scratch: Scratch, layers: Sequence[str]) -> Unpacked:
    """Unpack layers, the lowest first, where `run_sandbox` wants them. Raises FormatError, StoreError."""
    lower = make_lower(scratch)
    command = [sys.executable, "-m", "snapshotter.optimize.unpack", lower, *layers]
    path = os.pathsep.join(filter(None, [_PACKAGES, os.environ.get("PYTHONPATH")]))
    done = await anyio.run_process(
        command, check=False, stdin=subprocess.DEVNULL, env={**os.environ, "PYTHONPATH": path}
    )
    try:
        reply = _REPLIES.decode(done.stdout)
    except msgspec.DecodeError as error:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        raise SandboxRefused(
            f"the image was not unpacked: {said[-1] if said else done.returncode}"
        ) from error
    if isinstance(reply, Unpacked):
        return reply
    raise StoreError(reply.message, errno=reply.errno) if reply.errno else FormatError(reply.message)
