"""`layergate pull`."""

from __future__ import annotations

import sys
import time
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import click

from snapshotter.cli.options import address_option, config_option
from snapshotter.interrupts import run_to_undo

if TYPE_CHECKING:
    from asyncio import Task

    from fetcher.manifest import ResolvedImage
    from snapshotter.containerd.progress import PullProgress
    from snapshotter.containerd.pull import PullResult

_Result = TypeVar("_Result")

_ANNOUNCE_LIMIT = 30.0  # seconds; the announcement saves time or is not worth waiting for


@dataclass(frozen=True, slots=True)
class _Options:
    """The command line."""

    containerd: str
    namespace: str
    snapshotter: str
    platform: str | None
    plain_http: bool
    address: str
    config_path: str | None


@click.command()
@click.option(
    "--containerd",
    default="/run/containerd/containerd.sock",
    show_default=True,
    metavar="SOCK",
    help="containerd's socket.",
)
@click.option(
    "--namespace",
    "-n",
    default="default",
    show_default=True,
    metavar="NAME",
    help="containerd's namespace; CRI's is k8s.io.",
)
@click.option(
    "--snapshotter",
    default="layergate",
    show_default=True,
    metavar="NAME",
    help="Snapshotter, as containerd's configuration names it.",
)
@click.option("--platform", metavar="OS/ARCH", help="Platform to pull.  [default: this machine's]")
@click.option("--plain-http", is_flag=True, help="Talk HTTP without TLS to the reference's registry.")
@address_option
@config_option
@click.option(
    "--verbose", is_flag=True, help="Log what goes on, and show a traceback where the command fails."
)
@click.argument("reference", metavar="REF")
def command(
    containerd: str,
    namespace: str,
    snapshotter: str,
    platform: str | None,
    plain_http: bool,
    address: str,
    config_path: str | None,
    verbose: bool,
    reference: str,
) -> int:
    """Pull the image REF through containerd, as `ctr run` and CRI will use it.

    Layers that the snapshotter makes lazily are not downloaded; any others are, and are unpacked
    by containerd as usual. Registry settings and credentials are those of layergate's own
    configuration file. Progress goes to standard error, the result to standard output.

    \b
    Examples
      layergate pull registry.example/python:3
      layergate pull -n k8s.io --platform linux/arm64 registry.example/python:3

    \b
    Exit codes
    0  pulled
    2  REF, --platform or the configuration file cannot be understood
    3  the registry has no such image, or not for this platform
    4  the registry does not take our credentials
    5  the registry failed or cannot be reached
    6  the image is damaged
    9  containerd or its snapshotter refused, or does not answer
    129, 130, 143  interrupted; nothing half-made stays in containerd
    """
    from fetcher.logs import configure_logs
    from snapshotter.cli.progress import shown_progress

    configure_logs("debug" if verbose else "warning")
    options = _Options(containerd, namespace, snapshotter, platform, plain_http, address, config_path)
    begun = time.monotonic()
    with shown_progress(live=sys.stderr.isatty() and not verbose) as progress:
        result = run_to_undo(partial(_pull, reference, options, progress))
    click.echo(_summary(result, snapshotter, time.monotonic() - begun))
    return 0


async def _pull(text: str, options: _Options, progress: PullProgress) -> PullResult:
    import msgspec

    from fetcher.credentials import CredentialStore
    from fetcher.manifest import Platform
    from fetcher.reference import parse_reference
    from fetcher.registry import RegistryClient
    from fetcher.settings import RegistryHost
    from snapshotter.config import load_config
    from snapshotter.containerd.client import connect
    from snapshotter.containerd.pull import pull_image
    from snapshotter.containerd.resolve import pullable_image

    reference = parse_reference(text)
    platform = Platform.parse(options.platform) if options.platform else Platform.host()
    settings = load_config(options.config_path).registry_settings()
    if options.plain_http:
        plain = msgspec.structs.replace(settings.hosts.get(reference.host, RegistryHost()), plain_http=True)
        settings = msgspec.structs.replace(settings, hosts={**settings.hosts, reference.host: plain})
    async with (
        connect(options.containerd, options.namespace) as containerd,
        RegistryClient(settings, CredentialStore(settings.docker_config)) as registry,
        # Beside one another, as each takes a tenth of the time until the layers are opened.
        _beside(registry.manifest(reference, platform=platform)) as resolving,
    ):
        await containerd.require_snapshotter(options.snapshotter)
        resolved = await resolving
        async with _beside(_announce(resolved, options)):
            image = await pullable_image(registry, resolved)
            return await pull_image(containerd, image, snapshotter=options.snapshotter, progress=progress)


@asynccontextmanager
async def _beside(work: Coroutine[None, None, _Result]) -> AsyncIterator[Task[_Result]]:
    """Run `work` beside the block, and no longer than the block; what it raises whoever awaits it gets."""
    import asyncio

    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # else asyncio would say that nobody has looked


async def _announce(image: ResolvedImage, options: _Options) -> None:
    """Have `layergate serve` open all layers together; without that, each is opened at its Prepare."""
    import grpc

    from fetcher.logs import get_logger
    from snapshotter.containerd.pull import lazy_expected
    from snapshotter.containerd.resolve import record_name
    from snapshotter.proto import admin_pb2
    from snapshotter.proto.admin_pb2_grpc import AdminStub

    if not any(lazy_expected(options.snapshotter, layer.annotations) for layer in image.layers):
        return
    log = get_logger("layergate.pull")
    request = admin_pb2.OpenImageRequest(
        reference=record_name(image.reference),
        manifest=image.manifest.data,
        plain_http=options.plain_http,
    )
    async with grpc.aio.insecure_channel(f"unix:{options.address}") as channel:
        try:
            await AdminStub(channel).OpenImage(  # type: ignore[no-untyped-call]
                request, timeout=_ANNOUNCE_LIMIT
            )
        except grpc.aio.AioRpcError as error:
            log.info("image_not_announced", address=options.address, reason=error.details())


def _summary(result: PullResult, snapshotter: str, seconds: float) -> str:
    """The result in one line."""
    from snapshotter.cli.progress import megabytes
    from snapshotter.containerd.progress import LayerState

    counts = [(state, result.count(state)) for state in LayerState]
    kinds = ", ".join(f"{count} {state.value}" for state, count in counts if count) or "none"
    layers = "1 layer" if len(result.states) == 1 else f"{len(result.states)} layers"
    return (
        f"{result.image.name} {result.image.target.digest} on {snapshotter}: "
        f"{layers} ({kinds}), {megabytes(result.downloaded)} downloaded, "
        f"{seconds:.1f} s"
    )
