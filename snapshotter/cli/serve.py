"""`layergate serve`."""

from __future__ import annotations

import click

from snapshotter.cli.options import address_option, config_option, root_option, verbose_option


@click.command()
@root_option
@address_option
@config_option
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="Overrides [log] level of the configuration.",
)
@verbose_option
def command(root: str, address: str, config_path: str | None, log_level: str | None) -> None:
    """Run the snapshotter that containerd talks to, until SIGTERM.

    containerd finds it as a proxy plugin:

    \b
        [proxy_plugins.layergate]
          type = "snapshot"
          address = "/run/layergate/layergate.sock"

    It may be stopped, killed and upgraded at any time: containers run on, and
    layers that were streaming go on where they were at the next start.

    \b
    Examples
      layergate serve
      layergate serve --root /data/layergate --log-level debug

    \b
    Exit codes
    0   stopped by SIGTERM or SIGINT
    2   the configuration file has an error, or the socket cannot be made
    7   the local disk refused
    9   another layergate serve has the root or the socket, or its metadata
        cannot be read
    """
    import os

    import anyio

    from mounter.capabilities import SERVE, keep_capabilities

    keep_capabilities(SERVE)  # before what follows may start a thread

    from snapshotter.errors import SocketUnusable
    from snapshotter.serve import serve

    address = os.path.abspath(address)
    try:
        os.makedirs(os.path.dirname(address), mode=0o700, exist_ok=True)
    except OSError as error:
        raise SocketUnusable(f"its directory cannot be made: {error.strerror}", path=address) from error
    config = os.path.abspath(config_path) if config_path else None

    async def run() -> None:
        await serve(root=root, address=address, config_path=config, level=log_level)

    anyio.run(run, backend="asyncio")
