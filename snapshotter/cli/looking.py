"""What `toc` and `compare` share: options for getting at images, progress, and JSON.

Imported with the commands, so it imports nothing that is slow before they run.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from snapshotter.cli.options import config_option
from snapshotter.defaults import DEFAULT_CONTAINERD, DEFAULT_NAMESPACE

if TYPE_CHECKING:
    import msgspec

    from fetcher.settings import RegistrySettings
    from snapshotter.inspection.contents import Progress
    from snapshotter.inspection.layers import Looking
    from snapshotter.inspection.reading import Begin


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """How to get at images, as the command line says it."""

    platform: str | None
    plain_http: bool
    containerd: str
    namespace: str
    config_path: str | None

    def settings(self) -> RegistrySettings:
        """Those of the configuration file. Raises ConfigError."""
        from snapshotter.config import load_config

        return load_config(self.config_path).registry_settings()

    def looking(self) -> Looking:
        """The same as values. Raises InvalidReference for a platform that is none."""
        from fetcher.manifest import Platform
        from snapshotter.image_places import Containerd
        from snapshotter.inspection.layers import Looking

        return Looking(
            platform=None if self.platform is None else Platform.parse(self.platform),
            plain_http=self.plain_http,
            containerd=Containerd(self.containerd, self.namespace),
        )


def access_options(function: Callable[..., int]) -> Callable[..., int]:
    """`--platform`, `--plain-http`, `--containerd`, `--namespace` and `--config`, as one `access`."""

    @functools.wraps(function)
    def gathered(
        *,
        platform: str | None,
        plain_http: bool,
        containerd: str,
        namespace: str,
        config_path: str | None,
        **others: object,
    ) -> int:
        access = Access(
            platform=platform,
            plain_http=plain_http,
            containerd=containerd,
            namespace=namespace,
            config_path=config_path,
        )
        return function(access=access, **others)

    for option in (
        config_option,
        click.option(
            "--namespace",
            "-n",
            default=DEFAULT_NAMESPACE,
            show_default=True,
            metavar="NAME",
            help="containerd's namespace; CRI's is k8s.io.",
        ),
        click.option(
            "--containerd",
            default=DEFAULT_CONTAINERD,
            show_default=True,
            metavar="SOCK",
            help="containerd's socket.",
        ),
        click.option("--plain-http", is_flag=True, help="Talk HTTP without TLS to the registry."),
        click.option(
            "--platform",
            metavar="OS/ARCH",
            help="Platform of the image.  [default: this machine's, or the only one]",
        ),
    ):
        gathered = option(gathered)
    return gathered


@contextmanager
def shown_reading(what: str) -> Iterator[Begin]:
    """How far reading is: a bar on standard error if that is a terminal, else nothing."""
    if not sys.stderr.isatty():
        yield lambda _total: lambda _count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Bars(*columns, console=Console(stderr=True), transient=True) as bars:
        task = bars.add_task("", total=0)
        total = 0

        def begin(more: int) -> Progress:
            nonlocal total
            total += more
            bars.update(task, total=total)
            return lambda count: bars.advance(task, count)

        yield begin


def print_json(record: msgspec.Struct) -> None:
    """Print to standard output; what is not UTF-8 in a name comes as `\\udcXX`, like Python has it."""
    import json

    import msgspec

    sys.stdout.write(json.dumps(msgspec.to_builtins(record), indent=1) + "\n")


def printable(text: str) -> str:
    """A name out of an image for a terminal: what could steer it, or is no UTF-8, is escaped."""
    if text.isprintable():
        return text
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in text)
