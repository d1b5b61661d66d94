"""`layergate record`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from snapshotter.cli.options import json_option, root_option, verbose_option

if TYPE_CHECKING:
    from collections.abc import Sequence

    from snapshotter.records.store import Kept


@click.group()
def command() -> None:
    """Show, export and clear what layergate serve has recorded of containers.

    With `[record] enabled = true`, serve keeps what the first container of each image opens in its first
    seconds, and what every container had to wait for. `layergate optimize --from-image` puts an image's files
    in that order.
    """


@command.command("ls")
@json_option
@root_option
@verbose_option
def list_records(as_json: bool, root: str) -> int:
    """Show the records that are here, the newest first.

    \b
    Examples
      layergate record ls
      layergate record ls --json | jq '.records[].images'

    Exit codes: 0; 7 if the local disk refused.
    """
    import json

    from snapshotter.records.store import RecordStore

    records = RecordStore(root).all()
    if as_json:
        click.echo(json.dumps({"records": [_as_dict(kept) for kept in records]}, indent=2))
    elif records:
        _print_table(records)
    else:
        click.echo("nothing is recorded", err=True)
    return 0


@command.command("export")
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False), metavar="FILE", help="Where to.  [default: output]"
)
@root_option
@verbose_option
@click.argument("image", metavar="IMAGE")
def export_record(output: str | None, root: str, image: str) -> int:
    """Write one record of all that is known of IMAGE, for `layergate optimize --record-in`.

    IMAGE is a reference, a chain ID, a layer key, or the beginning of one of these two, as in `record ls`.

    \b
    Examples
      layergate record export -o web.jsonl registry.example/web:1
      layergate record export registry.example/web:1 | head -1

    \b
    Exit codes
    0   written
    3   nothing is recorded of IMAGE
    7   the local disk refused
    """
    import sys

    from fetcher.record import format_record
    from snapshotter.optimize.errors import NoSuchRecord
    from snapshotter.records.store import RecordStore, combined, write_record

    found = RecordStore(root).matching(image)
    if not found:
        raise NoSuchRecord(f"nothing is recorded of {image}: see layergate record ls")
    record = combined(found)
    if output is None:
        sys.stdout.buffer.write(format_record(record))
    else:
        write_record(output, record)
    return 0


@command.command("clear")
@click.option("--all", "everything", is_flag=True, help="Every record.")
@root_option
@verbose_option
@click.argument("images", metavar="[IMAGE]...", nargs=-1)
def clear_records(everything: bool, root: str, images: tuple[str, ...]) -> int:
    """Remove the records of these images, so that the next container of each is recorded anew.

    \b
    Examples
      layergate record clear registry.example/web:1
      layergate record clear --all

    Exit codes: 0; 3 if nothing is recorded of one of them; 7 if the local disk refused.
    """
    from snapshotter.optimize.errors import NoSuchRecord
    from snapshotter.records.store import RecordStore

    if everything == bool(images):
        raise click.UsageError("name images, or --all of them")
    records = RecordStore(root)
    if everything:
        found = records.all()
    else:
        found = []
        for image in images:
            matching = records.matching(image)
            if not matching:
                raise NoSuchRecord(f"nothing is recorded of {image}: see layergate record ls")
            found += [kept for kept in matching if kept not in found]
    records.clear(found)
    click.echo(f"{len(found)} removed")
    return 0


def _as_dict(kept: Kept) -> dict[str, object]:
    header = kept.record.header
    return {
        "kind": "waits" if kept.waits else "opens",
        "images": kept.names,
        "chain": header.chain or None,
        "layers": header.layers,
        "files": len(kept.record.files),
        "bytes": kept.size,
        "started": header.started,
        "seconds": header.seconds,
        "incomplete": header.incomplete,
        "path": kept.path,
    }


def _print_table(records: Sequence[Kept]) -> None:
    import time

    from rich.table import Table

    from snapshotter.cache.quantities import age_text
    from snapshotter.cli.cache_tables import print_out

    now = time.time()
    table = Table(box=None, pad_edge=False)
    for name in ("KIND", "OF", "FILES", "AGE", "IMAGE"):
        table.add_column(name, overflow="fold", justify="right" if name == "FILES" else "left")
    for kept in records:
        header = kept.record.header
        table.add_row(
            "waits" if kept.waits else "opens",
            (header.chain.removeprefix("sha256:") or "".join(header.layers[:1]))[:12],
            f"{len(kept.record.files):,}" + ("+" if header.incomplete else ""),
            age_text(now - header.started),
            "\n".join(kept.names) or "-",
        )
    print_out(table)
