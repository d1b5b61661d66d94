"""`tar2estargz`."""

from __future__ import annotations

import click

from fetcher.version import VERSION
from snapshotter.cli.converting import layer_options, on_terminal, parsed_options, run


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(VERSION, prog_name="tar2estargz", message="%(prog)s %(version)s")
@layer_options
@click.option("--platform", metavar="OS/ARCH", help="Of an archive with several.  [default: this machine's]")
@click.option("--all-platforms", is_flag=True, help="Convert every image of an archive's index, and keep it.")
@click.option("--verbose", is_flag=True, help="Show a traceback where it fails.")
@click.argument("source", metavar="IN.tar", type=click.Path(dir_okay=False))
@click.argument("target", metavar="OUT", type=click.Path(dir_okay=False))
def command(
    level: int | None,
    chunk_size: str | None,
    min_chunk_size: str | None,
    jobs: int | None,
    platform: str | None,
    all_platforms: bool,
    verbose: bool,
    source: str,
    target: str,
) -> int:
    """Convert the file IN.tar to eStargz, and write it to OUT.

    A saved image (docker save, podman save, skopeo, an OCI archive) becomes an OCI archive with eStargz
    layers, which docker load, podman, skopeo and ctr images import take; a layer's tar, compressed or not,
    becomes an eStargz layer.

    \b
    Examples
      docker save python:3 -o python.tar && tar2estargz python.tar lazy.tar
      tar2estargz layer.tar layer.tar.gz

    Exit codes are those of layergate convert.
    """
    from fetcher.images.naming import ArchivePlace, LayerPlace, parse_place
    from fetcher.manifest import Platform
    from fetcher.settings import RegistrySettings
    from snapshotter.convert.choice import LayerChoice
    from snapshotter.convert.run import Conversion
    from snapshotter.defaults import DEFAULT_CONTAINERD, DEFAULT_NAMESPACE
    from snapshotter.image_places import Containerd

    if platform is not None and all_platforms:
        raise click.UsageError("--platform and --all-platforms exclude each other")
    options = parsed_options("estargz", level, chunk_size, min_chunk_size)
    place = parse_place(source if source.startswith(("/", "./", "../")) else f"./{source}")
    conversion = Conversion(
        source=place,
        destination=LayerPlace(target) if isinstance(place, LayerPlace) else ArchivePlace(target),
        options_for=LayerChoice(
            options, rebuild=any(option is not None for option in (level, chunk_size, min_chunk_size))
        ),
        options=options,
        platform=Platform.parse(platform) if platform else None,
        all_platforms=all_platforms,
        settings=RegistrySettings(),
        containerd=Containerd(DEFAULT_CONTAINERD, DEFAULT_NAMESPACE),
    )
    return run(conversion, jobs=jobs, live=on_terminal() and not verbose)


def main() -> None:
    """Entry point of `tar2estargz`."""
    from snapshotter.cli import run_to_exit

    run_to_exit(command, "tar2estargz")


if __name__ == "__main__":
    main()
