"""`layergate convert`."""

from __future__ import annotations

import click

from snapshotter.cli.converting import layer_options, on_terminal, parsed_options, run
from snapshotter.cli.options import config_option
from snapshotter.defaults import DEFAULT_CONTAINERD, DEFAULT_NAMESPACE


@click.command()
@click.option(
    "--format",
    "layer_format",
    type=click.Choice(["estargz", "zstd:chunked"]),
    default="estargz",
    show_default=True,
    help="What layers become.",
)
@layer_options
@click.option(
    "--prioritize",
    type=click.Path(dir_okay=False, exists=True),
    metavar="FILE",
    help="Begin layers with these files, one path a line in the order of access, or a record of optimize.",
)
@click.option("--platform", metavar="OS/ARCH", help="Platform to convert.  [default: this machine's]")
@click.option("--all-platforms", is_flag=True, help="Convert every image of an index, and keep the index.")
@click.option("--rebuild", is_flag=True, help="Convert layers that are in the format already, too.")
@click.option("--plain-http", is_flag=True, help="Talk HTTP without TLS to the registries of SRC and DST.")
@click.option(
    "--containerd",
    default=DEFAULT_CONTAINERD,
    show_default=True,
    metavar="SOCK",
    help="Socket of the containerd that containerd: means.",
)
@click.option(
    "--namespace",
    "-n",
    default=DEFAULT_NAMESPACE,
    show_default=True,
    metavar="NAME",
    help="containerd's namespace; CRI's is k8s.io.",
)
@config_option
@click.option(
    "--verbose", is_flag=True, help="Log what goes on, and show a traceback where the command fails."
)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
def command(
    layer_format: str,
    level: int | None,
    chunk_size: str | None,
    min_chunk_size: str | None,
    jobs: int | None,
    prioritize: str | None,
    platform: str | None,
    all_platforms: bool,
    rebuild: bool,
    plain_http: bool,
    containerd: str,
    namespace: str,
    config_path: str | None,
    verbose: bool,
    source: str,
    destination: str,
) -> int:
    """Convert the image SRC to one that can be pulled lazily, and write it to DST.

    The new image is an ordinary one to clients that know nothing of this. A layer that is in the format
    already stays as it is, unless an option says how layers are to be made, or --rebuild. The same image and
    options give the same bytes. What is written to DST has its name only when all of it is there.

    \b
    SRC and DST
      registry.example/python:3     an image in a registry
      oci:DIR  oci:DIR:TAG          an image in an OCI layout; others in it stay
      docker-archive:FILE           what docker save writes; DST is an OCI archive
      containerd:REF                an image in containerd's content store
      ./image.tar  ./layer.tar.gz   an archive or one layer, as is in the file

    \b
    Examples
      layergate convert registry.example/python:3 registry.example/python:3-lazy
      layergate convert --all-platforms oci:DIR:python containerd:python:lazy
      layergate convert --prioritize first.txt ./python.tar oci:DIR:lazy
      layergate convert --format zstd:chunked ./layer.tar ./layer.tar.zst

    Layers pass through a scratch directory below $TMPDIR, which takes a few of them uncompressed. Sizes are
    bytes, or like 4MiB and 500KB.

    \b
    Exit codes
    0    converted
    2    SRC, DST, an option or the configuration file cannot be understood
    3    there is no such image, file or platform
    4    a registry does not take our credentials
    5    a registry failed or cannot be reached
    6    SRC is damaged, or has a layer of a kind that cannot be converted
    7    the local disk refused, or is full
    9    containerd refused, or does not answer
    22   DST exists in another form
    129, 130, 143  interrupted; nothing is left behind
    """
    import dataclasses

    from fetcher.images.naming import parse_destination, parse_place
    from fetcher.logs import configure_logs
    from fetcher.manifest import Platform
    from snapshotter.config import load_config
    from snapshotter.convert.choice import LayerChoice
    from snapshotter.convert.prioritized import read_prioritized
    from snapshotter.convert.run import Conversion
    from snapshotter.image_places import Containerd

    if platform is not None and all_platforms:
        raise click.UsageError("--platform and --all-platforms exclude each other")
    configure_logs("debug" if verbose else "warning")
    options = parsed_options(layer_format, level, chunk_size, min_chunk_size)
    files = read_prioritized(prioritize) if prioritize else ()
    stated = any(option is not None for option in (level, chunk_size, min_chunk_size))
    conversion = Conversion(
        source=parse_place(source),
        destination=parse_destination(destination),
        options_for=LayerChoice(options, files=files, rebuild=rebuild or stated),
        options=dataclasses.replace(options, prioritized=tuple(file.path for file in files) or None),
        platform=Platform.parse(platform) if platform else None,
        all_platforms=all_platforms,
        settings=load_config(config_path).registry_settings(),
        plain_http=plain_http,
        containerd=Containerd(containerd, namespace),
    )
    return run(conversion, jobs=jobs, live=on_terminal() and not verbose)
