"""Values that go to and come from containerd, free of protobuf."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field


class SnapshotKind(enum.Enum):
    """What a snapshot is; the values are those of containerd's protocol."""

    UNKNOWN = 0
    VIEW = 1
    ACTIVE = 2
    COMMITTED = 3


@dataclass(frozen=True, slots=True)
class Descriptor:
    """A blob in the content store; `size` in bytes."""

    media_type: str
    digest: str
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Mount:
    """One mount as mount(2) wants it, options still apart."""

    type: str
    source: str
    target: str
    options: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ContentInfo:
    """A committed blob; `size` in bytes."""

    digest: str
    size: int
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SnapshotInfo:
    """A snapshot; `parent` is empty at the bottom of a chain."""

    name: str
    parent: str
    kind: SnapshotKind
    labels: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Image:
    """An image record: a name and what it stands for, an index or a manifest."""

    name: str
    target: Descriptor
    labels: Mapping[str, str]
