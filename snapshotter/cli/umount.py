"""`layergate umount`."""

from __future__ import annotations

import click

from snapshotter.cli.options import address_option, root_option, verbose_option


@click.command()
@click.option("--lazy", "-l", is_flag=True, help="Also what is in use; it goes on until its last user ends.")
@root_option
@address_option
@verbose_option
@click.argument("mountpoints", metavar="MOUNTPOINT...", nargs=-1, required=True, type=click.Path())
def command(lazy: bool, root: str, address: str, mountpoints: tuple[str, ...]) -> int:
    """Unmount what `layergate mount` has mounted, and let go of all that it needed.

    What is left by a crash is cleared away as well. The layers stay in the cache, unless it was cleaned since
    the crash; what was written with --rw stays in its directory.

    \b
    Examples
      layergate umount /mnt
      layergate umount --lazy /srv/box/root /srv/other

    \b
    Exit codes
    0   unmounted
    1   the directory of layers cannot be read
    8   the kernel refused
    17  MOUNTPOINT is in use, or something else is mounted over it
    18  nothing of ours is mounted on MOUNTPOINT
    """
    from mounter.errors import MounterError
    from snapshotter.cli.exit_codes import exit_code
    from snapshotter.manual.errors import ManualMountError
    from snapshotter.manual.release import unmount_manual

    codes = []
    for mountpoint in mountpoints:
        try:
            layers = unmount_manual(root, mountpoint, lazy=lazy)
            if layers:
                _discard(root, address, layers)
        except (ManualMountError, MounterError) as error:
            if len(mountpoints) == 1:
                raise
            click.echo(f"layergate: {error}", err=True)
            codes.append(exit_code(error))
    return codes[0] if codes else 0


def _discard(root: str, address: str, layers: list[str]) -> None:
    """Remove layers that nothing uses any more; that they stay would be no reason to fail."""
    from snapshotter.cache.values import Selection
    from snapshotter.cli.cache_client import NodeCache
    from snapshotter.errors import MetadataError, ServeUnreachable

    try:
        NodeCache(root, address).clean(Selection(layers=layers), dry_run=False)
    except (ServeUnreachable, MetadataError, OSError) as error:
        click.echo(f"layergate: layers stay in the cache: {error}", err=True)
