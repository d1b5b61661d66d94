"""`layergate umount`."""

from __future__ import annotations

import click

from snapshotter.cli.options import root_option, verbose_option


@click.command()
@click.option("--lazy", "-l", is_flag=True, help="Also what is in use; it goes on until its last user ends.")
@root_option
@verbose_option
@click.argument("mountpoints", metavar="MOUNTPOINT...", nargs=-1, required=True, type=click.Path())
def command(lazy: bool, root: str, mountpoints: tuple[str, ...]) -> int:
    """Unmount what `layergate mount` has mounted, and let go of all that it needed.

    What is left by a crash is cleared away as well. The layers stay in the cache, and what was written with
    --rw stays in its directory.

    \b
    Exit codes
    0   unmounted
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
            unmount_manual(root, mountpoint, lazy=lazy)
        except (ManualMountError, MounterError) as error:
            if len(mountpoints) == 1:
                raise
            click.echo(f"layergate: {error}", err=True)
            codes.append(exit_code(error))
    return codes[0] if codes else 0
