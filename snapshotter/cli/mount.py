"""`layergate mount`."""

from __future__ import annotations

import signal
from types import FrameType
from typing import TYPE_CHECKING

import click

from snapshotter.cli.options import config_option, root_option, verbose_option

if TYPE_CHECKING:
    from collections.abc import Callable

    from snapshotter.cli.mount_progress import LiveDisplay, PlainDisplay
    from snapshotter.config import Config
    from snapshotter.manual.messages import Mounted
    from snapshotter.manual.request import MountRequest

_LONGEST = 30_000
"""Characters of a traceback that a keeper passes on."""


@click.command()
@click.option(
    "--layer", metavar="N|DIGEST", help="One layer alone: its number, 1 is the lowest, or its digest."
)
@click.option(
    "--rw",
    type=click.Path(file_okay=False),
    metavar="DIR",
    help="Writable: what is written goes to DIR, made if it is absent.",
)
@click.option("--wait", is_flag=True, help="Return when everything is here, and show how far it is.")
@click.option("--foreground", is_flag=True, help="The same without a process in the background.")
@click.option("--platform", metavar="OS/ARCH", help="Platform of the image.  [default: this machine's]")
@click.option("--plain-http", is_flag=True, help="Talk HTTP without TLS to the image's registry.")
@root_option
@config_option
@verbose_option
@click.argument("source", metavar="SOURCE")
@click.argument("mountpoint", metavar="MOUNTPOINT", type=click.Path())
def command(
    layer: str | None,
    rw: str | None,
    wait: bool,
    foreground: bool,
    platform: str | None,
    plain_http: bool,
    root: str,
    config_path: str | None,
    source: str,
    mountpoint: str,
) -> int:
    """Mount an image, or one layer of it, on the empty directory MOUNTPOINT.

    It is up when the tables of contents and what is to be prefetched are here; every file reads right from
    then on. The rest streams in, and then the mount is swapped in place for native overlayfs; no process of
    ours stays. Neither containerd nor `layergate serve` is needed; both may use the same layers.

    \b
    SOURCE
      registry.example/python:3     an image in a registry
      oci:DIR  oci:DIR:TAG          an image in an OCI layout, as skopeo makes it
      ./layer.tar.gz                the file of one eStargz or zstd:chunked layer

    \b
    Examples
      layergate mount registry.example/python:3 /mnt
      layergate mount --wait --rw /srv/changes oci:/srv/images:python /mnt
      layergate mount --layer 2 registry.example/python:3 /mnt
      layergate umount /mnt

    One layer shows its whiteouts as they are, character devices 0:0, unless it is writable. Read-only mounts
    are nosuid and nodev. Ctrl-C leaves nothing behind, unless the command had returned.

    \b
    Exit codes
    0    mounted
    1    something else went wrong; the line says what
    2    SOURCE, --platform or the configuration file cannot be understood
    3    there is no such image, layout, file or platform
    4    the registry does not take our credentials
    5    the registry failed or cannot be reached
    6    what came is damaged
    7    the local disk refused
    8    the kernel refused a mount
    10   MOUNTPOINT, or the parent of DIR, is no directory
    11   MOUNTPOINT is not empty
    12   something is mounted on MOUNTPOINT already, or DIR is in use
    13   the image has no such layer
    14   a layer is neither eStargz nor zstd:chunked; the line says what it is
    15   mounting needs root
    16   there is no FUSE, or else nothing to be lazy with: see layergate doctor
    129, 130, 143  interrupted; nothing is left behind
    """
    import os
    import secrets
    import sys
    from contextlib import ExitStack

    from fetcher.manifest import Platform
    from snapshotter.cli.mount_progress import display
    from snapshotter.config import load_config
    from snapshotter.manual.errors import NotPermitted
    from snapshotter.manual.request import MountRequest
    from snapshotter.manual.source import absolute_source

    if os.geteuid():
        raise NotPermitted("mounting needs root")
    config = load_config(config_path)
    if platform is not None:
        platform = str(Platform.parse(platform))
    request = MountRequest(
        id=secrets.token_hex(6),
        root=os.path.abspath(root),
        source=absolute_source(source),
        mountpoint=os.path.realpath(mountpoint),
        layer=layer,
        rw=None if rw is None else os.path.realpath(rw),
        platform=platform,
        plain_http=plain_http,
        config=None if config_path is None else os.path.abspath(config_path),
    )
    live = sys.stderr.isatty() and (wait or foreground)
    # What was done goes to standard output once nothing is drawn on the terminal any more.
    if foreground:
        with display(live=live) as shown:
            code, said = _in_foreground(request, config, shown)
    else:
        with ExitStack() as stack:
            code, said = (
                0,
                _in_background(request, config, lambda: stack.enter_context(display(live=live)), wait=wait),
            )
    click.echo(said, err=code != 0)
    return code


def _in_background(
    request: MountRequest,
    config: Config,
    begin: Callable[[], LiveDisplay | PlainDisplay],
    *,
    wait: bool,
) -> str:
    """`begin` is called when the keeper is forked off: a display has threads and takes standard error."""
    import traceback

    from snapshotter.cli.exit_codes import exit_code, is_ours, sole_cause
    from snapshotter.manual.messages import Failed, Message, Mounted
    from snapshotter.manual.mounting import mount_in_background

    def explain(error: Exception) -> Failed:
        cause = sole_cause(error)
        if is_ours(cause):
            return Failed(str(cause), exit_code(cause))
        # A defect of ours: its log goes with the mount, so the traceback is shown here.
        trace = "".join(traceback.format_exception(error))[-_LONGEST:]
        return Failed(f"internal error\n{trace}".rstrip(), 1)

    said = f"{request.mountpoint}: mounted, complete"

    shown: LiveDisplay | PlainDisplay | None = None

    def show(message: Message) -> None:
        nonlocal said, shown
        if isinstance(message, Mounted) and not wait:
            said = f"{request.mountpoint}: {_summary(message)}"
        else:
            shown = shown or begin()
            shown.show(message)

    def terminated(number: int, _frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    signal.signal(signal.SIGTERM, terminated)
    mount_in_background(request, config, explain=explain, show=show, wait=wait)
    return said


def _in_foreground(
    request: MountRequest, config: Config, shown: LiveDisplay | PlainDisplay
) -> tuple[int, str]:
    from snapshotter.cli.mount_progress import DisplayReporter
    from snapshotter.manual.keeper import Ending
    from snapshotter.manual.mounting import mount_in_foreground

    ending = mount_in_foreground(request, config, DisplayReporter(shown))
    if ending is Ending.COMPLETE:
        return 0, f"{request.mountpoint}: mounted, complete"
    codes = {Ending.INTERRUPTED: 128 + signal.SIGINT, Ending.TERMINATED: 128 + signal.SIGTERM}
    return codes.get(ending, 1), f"layergate: {ending.value}"


def _summary(mounted: Mounted) -> str:
    layers = "1 layer" if mounted.layers == 1 else f"{mounted.layers} layers"
    if mounted.complete == mounted.layers:
        return f"mounted, {layers}, complete"
    return f"mounted, {layers}, {mounted.complete} complete, the rest streams"
