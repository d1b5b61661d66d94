"""Running `layergate toc` and `layergate compare` in this process, on images that are written as files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from snapshotter.cli import cli
from tests import oci
from tests.estargz import Layer
from tests.integration.manual import write_layout


def run(*arguments: str) -> Result:
    """`layergate ARGUMENTS`, as `main` runs it: errors of ours come out as they are."""
    return CliRunner().invoke(cli, list(arguments), standalone_mode=False)


def json_of(*arguments: str) -> dict[str, Any]:
    """What a command printed as JSON."""
    result = run(*arguments)
    assert result.exception is None, result.exception
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def layout(directory: Path, *layers: Layer, annotate: bool = True) -> str:
    """An image in an OCI layout; its SRC."""
    return write_layout(str(directory), oci.image(layers, annotate=annotate))


def blob_path(source: str, layer: Layer) -> Path:
    """The file of a layer in a layout."""
    directory = source.removeprefix("oci:").removesuffix(":test")
    return Path(directory, "blobs", *layer.digest.split(":"))
