"""Leases, with which containerd spares from garbage collection what is being made, and who holds them."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Final

import msgspec
from google.protobuf import empty_pb2

from fetcher.logs import get_logger
from fetcher.store import boot_id
from snapshotter.containerd.channel import ContainerdChannel
from snapshotter.containerd.errors import ContainerdNotFound
from snapshotter.containerd.labels import EXPIRES
from snapshotter.processes import Process
from snapshotter.proto import leases_pb2

log = get_logger("layergate.leases")

_LEASES: Final = "containerd.services.leases.v1.Leases"
_PREFIX: Final = "layergate-"
_HOLDER: Final = "layergate/holder"


class _Holder(msgspec.Struct, frozen=True):
    """Who has a lease. Of another boot, or another pid namespace, nothing can be said of a process."""

    boot: str
    namespace: str
    process: Process

    @classmethod
    def current(cls) -> _Holder:
        return cls(boot_id(), os.readlink("/proc/self/ns/pid"), Process.current())

    def is_gone(self) -> bool:
        if self.boot != boot_id():
            return True
        return self.namespace == os.readlink("/proc/self/ns/pid") and not self.process.runs()


_HOLDERS: Final = msgspec.json.Decoder(_Holder)


async def create_lease(channel: ContainerdChannel, seconds: int) -> str:
    """The id of a new lease, of this process, that expires after `seconds`."""
    lease = f"{_PREFIX}{time.time_ns()}-{secrets.token_hex(4)}"
    expires = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))
    labels = {EXPIRES: expires, _HOLDER: msgspec.json.encode(_Holder.current()).decode()}
    await channel.unary(
        f"{_LEASES}/Create",
        leases_pb2.CreateRequest(id=lease, labels=labels),
        leases_pb2.CreateResponse,
        action="create a lease",
    )
    return lease


async def add_to_lease(channel: ContainerdChannel, kind: str, name: str) -> None:
    """Add what was there before to the channel's lease: "content", or "snapshots/<snapshotter>"."""
    await channel.unary(
        f"{_LEASES}/AddResource",
        leases_pb2.AddResourceRequest(
            id=channel.lease or "", resource=leases_pb2.Resource(id=name, type=kind)
        ),
        empty_pb2.Empty,
        action=f"add {kind} {name} to a lease",
    )


async def delete_lease(channel: ContainerdChannel, lease: str, *, collect: bool) -> None:
    """Delete a lease; with `collect`, return when what it kept has been collected as garbage."""
    await channel.unary(
        f"{_LEASES}/Delete",
        leases_pb2.DeleteRequest(id=lease, sync=collect),
        empty_pb2.Empty,
        action="delete a lease",
    )


async def delete_abandoned_leases(channel: ContainerdChannel) -> None:
    """Delete the leases of processes of ours that were killed: what they keep would stay for a day."""
    answer = await channel.unary(
        f"{_LEASES}/List", leases_pb2.ListRequest(), leases_pb2.ListResponse, action="list leases"
    )
    for lease in answer.leases:
        if lease.id.startswith(_PREFIX) and _is_abandoned(lease.labels):
            with suppress(ContainerdNotFound):  # another process was faster
                await delete_lease(channel, lease.id, collect=False)
                log.info("abandoned_lease_deleted", lease=lease.id)


def _is_abandoned(labels: Mapping[str, str]) -> bool:
    try:
        return _HOLDERS.decode(labels.get(_HOLDER, "")).is_gone()
    except msgspec.DecodeError:  # of a version that says nothing, or says it otherwise
        return False
