"""Fixtures: a file system, a registry with the real image in it, and containerd with layergate on top."""

from __future__ import annotations

import itertools
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from tests.integration.harness import Containerd, Layergate, Registry, Throttle, fresh_file_system, mounts
from tests.integration.image import FORMS, RealImage, real_image

_BUILDING = 900
"""Seconds that the first test on the real image may take, if it has to be built."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test's time limit counts its fixtures too."""
    for item in items:
        if "image" in getattr(item, "fixturenames", ()) and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(_BUILDING))


@dataclass(frozen=True, slots=True)
class References:
    """The real image's three forms in the registry."""

    plain: str
    estargz: str
    optimized: str


@pytest.fixture(scope="session")
def file_system() -> Iterator[str]:
    """A fresh ext4 with a short path, for the roots of everything that is started."""
    with (
        tempfile.TemporaryDirectory(prefix="layergate-") as directory,
        fresh_file_system(f"{directory}/fs") as mounted,
    ):
        yield mounted


@pytest.fixture(scope="session")
def image() -> RealImage:
    """The real image's OCI layouts."""
    return real_image()


@pytest.fixture(scope="session")
def registry(file_system: str) -> Iterator[Registry]:
    """A registry, empty but for what tests push."""
    with Registry(f"{file_system}/registry") as running:
        yield running


@pytest.fixture(scope="session")
def references(registry: Registry, image: RealImage) -> References:
    """The real image, pushed to `registry`."""
    return References(*(registry.push(getattr(image, form), "python", tag=form) for form in FORMS))


@pytest.fixture
def throttle(registry: Registry, directory: str) -> Iterator[Throttle]:
    """A link to `registry`, at full speed until its rate is set."""
    with Throttle(f"{directory}/throttle", registry.host) as link:
        yield link


_numbers = itertools.count(1)


@pytest.fixture
def directory(file_system: str) -> Iterator[str]:
    """A directory of this test's own, with a short path.

    It goes with the test: all of them together would fill the file system, and streaming would pause.
    """
    path = f"{file_system}/{next(_numbers)}"
    yield path
    if not mounts(path):
        shutil.rmtree(path, ignore_errors=True)


@pytest.fixture
def layergate(directory: str) -> Iterator[Layergate]:
    """`layergate serve` with the default configuration."""
    with Layergate(f"{directory}/layergate") as serving:
        yield serving


@pytest.fixture
def containerd(directory: str, layergate: Layergate) -> Iterator[Containerd]:
    """containerd with layergate as a snapshotter beside overlayfs."""
    with Containerd(f"{directory}/containerd", snapshotters={"layergate": layergate.socket}) as running:
        yield running


@pytest.fixture
def ordinary_containerd(directory: str) -> Iterator[Containerd]:
    """containerd with its own snapshotters only, to compare with."""
    with Containerd(f"{directory}/ordinary") as running:
        yield running
