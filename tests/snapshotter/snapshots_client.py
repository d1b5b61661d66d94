"""containerd's side of the snapshots service: a client, and a mounter of what it answers.

It knows nothing but a socket's path, so that the same tests can run against
any server.
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import cast

import grpc
import pytest

from snapshotter.proto import snapshots_pb2 as pb
from snapshotter.proto.snapshots_pb2_grpc import SnapshotsStub

GC_ROOT = {"containerd.io/gc.root": "2024-01-01T00:00:00Z"}

_MS_RDONLY = 1
_MS_REMOUNT = 32
_MS_BIND = 4096
_MS_REC = 16384
_MNT_DETACH = 2
_PAGE = 4096


@dataclass(frozen=True, slots=True)
class Info:
    """A snapshot as containerd sees it; times are nanoseconds."""

    name: str
    parent: str
    kind: str
    created_ns: int
    updated_ns: int
    labels: dict[str, str]


class SnapshotsClient:
    """The calls of containerd's `snapshots.Snapshotter`, blocking."""

    def __init__(self, socket_path: str) -> None:
        self._channel = grpc.insecure_channel(f"unix:{socket_path}")
        self._stub = SnapshotsStub(self._channel)  # type: ignore[no-untyped-call]

    def __enter__(self) -> SnapshotsClient:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        self._channel.close()

    def prepare(self, key: str, parent: str = "", labels: Mapping[str, str] = GC_ROOT) -> list[pb.Mount]:
        answer = self._stub.Prepare(pb.PrepareSnapshotRequest(key=key, parent=parent, labels=labels))
        return list(answer.mounts)

    def view(self, key: str, parent: str = "", labels: Mapping[str, str] = GC_ROOT) -> list[pb.Mount]:
        return list(self._stub.View(pb.ViewSnapshotRequest(key=key, parent=parent, labels=labels)).mounts)

    def mounts(self, key: str) -> list[pb.Mount]:
        return list(self._stub.Mounts(pb.MountsRequest(key=key)).mounts)

    def commit(self, name: str, key: str, labels: Mapping[str, str] = GC_ROOT, parent: str = "") -> None:
        self._stub.Commit(pb.CommitSnapshotRequest(name=name, key=key, labels=labels, parent=parent))

    def remove(self, key: str) -> None:
        self._stub.Remove(pb.RemoveSnapshotRequest(key=key))

    def stat(self, key: str) -> Info:
        return _info(self._stub.Stat(pb.StatSnapshotRequest(key=key)).info)

    def update(self, name: str, labels: Mapping[str, str], *paths: str, parent: str = "") -> Info:
        request = pb.UpdateSnapshotRequest(info=pb.Info(name=name, parent=parent, labels=labels))
        request.update_mask.paths.extend(paths)
        return _info(self._stub.Update(request).info)

    def walk(self, *filters: str) -> Iterator[Info]:
        for page in self._stub.List(pb.ListSnapshotsRequest(filters=filters)):
            yield from map(_info, page.info)

    def usage(self, key: str) -> tuple[int, int]:
        answer = self._stub.Usage(pb.UsageRequest(key=key))
        return answer.size, answer.inodes

    def cleanup(self) -> None:
        self._stub.Cleanup(pb.CleanupRequest())


def failure(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """The status and the text that a call fails with; it has to fail."""
    with pytest.raises(grpc.RpcError) as raised:
        call()
    error = cast(grpc.Call, raised.value)  # every error of a stub is one, which the stubs' types do not say
    return error.code(), error.details()


def mount_all(mounts: Sequence[pb.Mount], target: str) -> None:
    """Mount as containerd does it, option strings longer than a page included."""
    for mount in mounts:
        if mount.type == "bind":
            flags = _MS_BIND | _MS_REC
            _mount(mount.source, target, None, flags, "")
            if "ro" in mount.options:
                _mount("", target, None, _MS_BIND | _MS_REMOUNT | _MS_RDONLY, "")
            continue
        options = list(mount.options)
        lowers = next(option for option in options if option.startswith("lowerdir="))
        paths = lowers.removeprefix("lowerdir=").split(":")
        if len(",".join(options)) < _PAGE - 512:
            _mount(mount.source, target, mount.type, 0, ",".join(options))
            continue
        common = os.path.commonpath(paths)
        short = ":".join(os.path.relpath(path, common) for path in paths)
        options[options.index(lowers)] = f"lowerdir={short}"
        with chdir(common):
            _mount(mount.source, target, mount.type, 0, ",".join(options))


def unmount(target: str) -> None:
    if _libc.umount2(os.fsencode(target), 0) != 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)


def unmount_below(top: str) -> None:
    """Unmount whatever a failed test left mounted below a directory, innermost first."""
    with open("/proc/self/mountinfo", encoding="utf-8") as lines:
        points = [line.split(" ", 5)[4] for line in lines]
    for point in reversed(points):
        if point.startswith(top + "/"):
            _libc.umount2(os.fsencode(point), _MNT_DETACH)


@contextmanager
def mounted(mounts: Sequence[pb.Mount], target: str) -> Iterator[str]:
    """Have a snapshot mounted on `target`, which is made if need be."""
    os.makedirs(target, exist_ok=True)
    mount_all(mounts, target)
    try:
        yield target
    finally:
        unmount(target)


_libc = ctypes.CDLL(None, use_errno=True)


def _mount(source: str, target: str, kind: str | None, flags: int, options: str) -> None:
    kind_bytes = None if kind is None else kind.encode()
    result = _libc.mount(
        os.fsencode(source), os.fsencode(target), kind_bytes, ctypes.c_ulong(flags), os.fsencode(options)
    )
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), f"{kind or 'bind'} on {target}: {options}")


def _info(info: pb.Info) -> Info:
    return Info(
        name=info.name,
        parent=info.parent,
        kind=pb.Kind.Name(info.kind),
        created_ns=info.created_at.ToNanoseconds(),
        updated_ns=info.updated_at.ToNanoseconds(),
        labels=dict(info.labels),
    )
