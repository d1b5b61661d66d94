"""Everything that a benchmark measured, as its JSON file has it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Final, Self

import msgspec

from scripts.benchmark.growth import Crowd, Growth
from scripts.benchmark.host import Host
from scripts.benchmark.link import Measured, Profile
from scripts.benchmark.misses import LargeRead, Opens
from scripts.benchmark.pulls import Pull
from scripts.benchmark.reads import Reading

OVERLAYFS: Final = "overlayfs, plain"
OPTIMIZED: Final = "layergate, optimized"
ESTARGZ: Final = "layergate, estargz"
PEER_OPTIMIZED: Final = "peer, optimized"
PEER_ESTARGZ: Final = "peer, estargz"


@dataclass(frozen=True, slots=True)
class Subject:
    """A form of an image, as measured."""

    form: str
    layers: int
    size: int
    """Of its layers, compressed bytes."""


@dataclass(frozen=True, slots=True)
class Starts:
    """The cold starts of one image over one link."""

    image: str
    profile: Profile
    link: Measured
    subjects: dict[str, Subject]
    """By form: plain, optimized, estargz."""
    runs: dict[str, list[Pull]] = field(default_factory=dict)
    """By what is measured: OVERLAYFS, OPTIMIZED, ..."""
    watched: list[Pull] = field(default_factory=list)
    """More of OPTIMIZED, with an eye on memory; slower for that."""


@dataclass(frozen=True, slots=True)
class Missing:
    """Opens and reads of missing files over one link."""

    profile: Profile
    link: Measured
    opens: list[Opens] = field(default_factory=list)
    large: list[LargeRead] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class Results:
    """What has been measured so far; empty lists are parts that were not asked for."""

    layergate: str
    host: Host
    links: dict[str, Measured] = field(default_factory=dict)
    """By profile, in its words."""
    starts: list[Starts] = field(default_factory=list)
    reads: list[Reading] = field(default_factory=list)
    missing: list[Missing] = field(default_factory=list)
    growth: list[Growth] = field(default_factory=list)
    images: list[Crowd] = field(default_factory=list)
    """Ever more small images on one node."""
    idle: list[Crowd] = field(default_factory=list)
    """Ten images of 15,000 files."""

    def write(self, path: str) -> None:
        """As JSON, under its name when it is whole."""
        with open(f"{path}.new", "wb") as file:
            file.write(msgspec.json.format(msgspec.json.encode(self), indent=1))
        os.rename(f"{path}.new", path)

    @classmethod
    def read(cls, path: str) -> Self:
        """What `write` wrote. Raises OSError, msgspec.DecodeError."""
        with open(path, "rb") as file:
            return msgspec.json.decode(file.read(), type=cls)
