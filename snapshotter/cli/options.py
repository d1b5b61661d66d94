"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import click

from snapshotter.defaults import DEFAULT_ADDRESS, DEFAULT_CONFIG, DEFAULT_ROOT

_F = TypeVar("_F", bound=Callable[..., object])


def root_option(function: _F) -> _F:
    """`--root DIR`."""
    return click.option(
        "--root",
        type=click.Path(file_okay=False),
        default=DEFAULT_ROOT,
        show_default=True,
        help="Directory of layers, snapshots and metadata.",
    )(function)


def address_option(function: _F) -> _F:
    """`--address SOCK`."""
    return click.option(
        "--address",
        type=click.Path(dir_okay=False),
        default=DEFAULT_ADDRESS,
        show_default=True,
        help="Socket of layergate serve.",
    )(function)


def config_option(function: _F) -> _F:
    """`--config FILE`."""
    return click.option(
        "--config",
        "config_path",
        type=click.Path(dir_okay=False),
        help=f"Configuration file.  [default: {DEFAULT_CONFIG}, if it exists]",
    )(function)


def json_option(function: _F) -> _F:
    """`--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")(function)


def verbose_option(function: _F) -> _F:
    """`--verbose`, here too, since people write it behind the command."""
    return click.option(
        "--verbose", is_flag=True, expose_value=False, help="Show a traceback where the command fails."
    )(function)
