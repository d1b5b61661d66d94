"""`layergate optimize`."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import click

from snapshotter.cli.converting import layer_options, on_terminal, parsed_options, run
from snapshotter.cli.options import config_option, root_option
from snapshotter.defaults import DEFAULT_CONTAINERD, DEFAULT_NAMESPACE

if TYPE_CHECKING:
    from collections.abc import Sequence

    from fetcher.record import Record
    from snapshotter.optimize.run import Optimization


@click.command()
@click.option(
    "--period",
    default="10s",
    show_default=True,
    metavar="TIME",
    help="How long the workload may run, like 30s or 5m.",
)
@click.option("--wait-for", "line", metavar="LINE", help="End the workload when its output has this.")
@click.option(
    "--env", "-e", "environment", multiple=True, metavar="K=V", help="A variable of its environment."
)
@click.option(
    "--entrypoint",
    metavar="PROGRAM|JSON",
    help="Instead of the image's entrypoint and command: a program, or a list of words in JSON.",
)
@click.option(
    "--network",
    type=click.Choice(["none", "host"]),
    default="none",
    show_default=True,
    help="The workload's network: a loopback interface of its own, or the host's.",
)
@click.option(
    "--record-in",
    "records_in",
    type=click.Path(dir_okay=False),
    multiple=True,
    metavar="FILE",
    help="Use this record, again and again for several; nothing is run unless COMMAND is given.",
)
@click.option(
    "--from-image",
    "from_images",
    multiple=True,
    metavar="REF",
    help="Use what layergate serve has recorded of this image, in the same way.",
)
@click.option(
    "--record-out", type=click.Path(dir_okay=False), metavar="FILE", help="Write the record that was used."
)
@click.option(
    "--format",
    "layer_format",
    type=click.Choice(["estargz", "zstd:chunked"]),
    default="estargz",
    show_default=True,
    help="What layers become.",
)
@layer_options
@click.option("--platform", metavar="OS/ARCH", help="Platform to convert.  [default: this machine's]")
@click.option(
    "--all-platforms", is_flag=True, help="Convert every image of an index; only where nothing is run."
)
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
@root_option
@config_option
@click.option(
    "--verbose", is_flag=True, help="Log what goes on, and show a traceback where the command fails."
)
@click.argument("source", metavar="SRC")
@click.argument("destination", metavar="DST")
@click.argument("words", metavar="[-- COMMAND...]", nargs=-1, type=click.UNPROCESSED)
def command(
    period: str,
    line: str | None,
    environment: tuple[str, ...],
    entrypoint: str | None,
    network: str,
    records_in: tuple[str, ...],
    from_images: tuple[str, ...],
    record_out: str | None,
    layer_format: str,
    level: int | None,
    chunk_size: str | None,
    min_chunk_size: str | None,
    jobs: int | None,
    platform: str | None,
    all_platforms: bool,
    plain_http: bool,
    containerd: str,
    namespace: str,
    root: str,
    config_path: str | None,
    verbose: bool,
    source: str,
    destination: str,
    words: tuple[str, ...],
) -> int:
    """Convert the image SRC to one whose layers begin with what a container opens first, and write it to DST.

    The image runs in a sandbox, by runc alone, with what its config says, or with COMMAND instead of its
    command. The files that it opens come first in their layers, in that order, in front of the prefetch
    landmark. The workload ends by itself, with --wait-for, or after --period; one that fails ends everything.
    SRC, DST and the layers are those of layergate convert. Running needs root.

    \b
    Examples
      layergate optimize oci:DIR:app registry.example/app:lazy -- python3 main.py
      layergate optimize --wait-for Listening --period 1m oci:DIR:web oci:DIR:lazy
      layergate optimize --record-out web.jsonl oci:in:web oci:out:web
      layergate optimize --record-in a.jsonl --record-in b.jsonl oci:in oci:out
      layergate optimize --from-image registry.example/web:1 oci:in oci:out

    A file larger than 32 MB of which less than a quarter is read does not come first: what is needed of it
    comes faster by itself. The sandbox unpacks the image below $TMPDIR.

    \b
    Exit codes
    0    converted
    1    the sandbox could not run the workload
    2    SRC, DST, an option or the configuration file cannot be understood
    3    there is no such image, file, platform or record
    4    a registry does not take our credentials
    5    a registry failed or cannot be reached
    6    SRC or a record is damaged, or has a layer of an unknown kind
    7    the local disk refused, or is full
    8    the kernel refused a mount
    9    containerd refused, or does not answer
    15   running needs root
    22   DST exists in another form
    23   the workload failed; the line has its exit status
    129, 130, 143  interrupted; nothing is left behind
    """
    import tempfile

    from fetcher.images.naming import LayerPlace, parse_destination, parse_place
    from fetcher.logs import configure_logs
    from fetcher.manifest import Platform
    from snapshotter.cache.quantities import parse_duration
    from snapshotter.config import load_config
    from snapshotter.convert.run import Conversion
    from snapshotter.image_places import Containerd
    from snapshotter.optimize.run import Optimization, Wish
    from snapshotter.optimize.spec import Workload
    from snapshotter.records.store import write_record

    if platform is not None and all_platforms:
        raise click.UsageError("--platform and --all-platforms exclude each other")
    runs = bool(words) or not (records_in or from_images)
    if runs and all_platforms:
        raise click.UsageError("--all-platforms is for records: what runs is one image, for this machine")
    if any("=" not in word for word in environment):
        raise click.UsageError("--env takes NAME=VALUE")
    try:
        seconds = parse_duration(period)
        if not seconds:
            raise ValueError("it has to be longer than that")
    except ValueError as error:
        raise click.UsageError(f"--period: {error}") from error
    configure_logs("debug" if verbose else "warning")
    options = parsed_options(layer_format, level, chunk_size, min_chunk_size)
    place = parse_place(source)
    if isinstance(place, LayerPlace):
        raise click.UsageError(f"{source} is one layer: convert --prioritize puts that in order")
    if runs:
        _prepare_to_run()
    optimization = Optimization(
        options,
        Wish(
            name=str(place),
            workload=Workload(
                entrypoint=None if entrypoint is None else _words(entrypoint),
                command=words,
                environment=environment,
                host_network=network == "host",
            ),
            period=seconds,
            line=line,
            records=[*_from_files(records_in), *_from_node(root, from_images)],
            run=runs,
            scratch=tempfile.gettempdir(),
            output=lambda data: click.echo(data.decode(errors="replace"), err=True, nl=False),
            recorded=lambda record: write_record(record_out, record) if record_out else None,
        ),
    )
    conversion = Conversion(
        source=place,
        destination=parse_destination(destination),
        options_for=optimization,
        options=options,
        platform=Platform.parse(platform) if platform else None,
        all_platforms=all_platforms,
        settings=load_config(config_path).registry_settings(),
        plain_http=plain_http,
        containerd=Containerd(containerd, namespace),
    )
    code = run(conversion, jobs=jobs, live=on_terminal() and not verbose)
    if code == 0:
        click.echo(_summary(optimization))
    return code


def _prepare_to_run() -> None:
    """Mounts of our own, before there is any thread. Raises NotPermitted."""
    from mounter.namespaces import own_mounts
    from snapshotter.manual.errors import NotPermitted

    if os.geteuid():
        raise NotPermitted("running an image needs root; with --record-in or --from-image nothing is run")
    own_mounts()


def _words(entrypoint: str) -> tuple[str, ...]:
    import msgspec

    if not entrypoint.startswith("["):
        return (entrypoint,)
    try:
        return tuple(msgspec.json.Decoder(list[str]).decode(entrypoint))
    except msgspec.DecodeError as error:
        raise click.UsageError(f"--entrypoint: not a list of words in JSON: {error}") from error


def _from_files(paths: Sequence[str]) -> list[Record]:
    from snapshotter.records.store import read_record

    return [read_record(path) for path in paths]


def _from_node(root: str, images: Sequence[str]) -> list[Record]:
    from snapshotter.optimize.errors import NoSuchRecord
    from snapshotter.records.store import RecordStore, combined

    records = []
    for image in images:
        found = RecordStore(root).matching(image)
        if not found:
            raise NoSuchRecord(f"nothing is recorded of {image}: see layergate record ls")
        records.append(combined(found))
    return records


def _summary(optimization: Optimization) -> str:
    """What was recorded, in a line or two."""
    record, ran = optimization.record, optimization.ran
    if record is None:
        return "the image has no layers to put in order"
    parts = [f"{len(record.files)} files in the record"]
    if ran is not None:
        status = "" if ran.status is None else f" with exit status {ran.status}"
        parts.append(f"the workload {ran.ending.value}{status}, {ran.seconds:.1f} s")
    first = sum(len(paths) for order in optimization.orders.values() for paths in order.layers)
    parts.append(f"{first} come first")
    left = [path for order in optimization.orders.values() for path in order.left_behind]
    if left:
        parts.append(f"left behind, as little of them is read: {', '.join(left)}")
    return "; ".join(parts)
