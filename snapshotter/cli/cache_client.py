"""The cache as commands reach it: through `layergate serve` where one runs on the root, else themselves."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Final, TypeVar

import grpc
import msgspec

from snapshotter.cache.offline import OfflineCache
from snapshotter.cache.values import CleanReport, Inventory, Selection
from snapshotter.errors import MetadataInUse, ServeUnreachable
from snapshotter.proto import admin_pb2 as pb
from snapshotter.proto.admin_pb2_grpc import AdminStub

_ANSWER_SECONDS: Final = 3600.0
"""To delete a hundred thousand files may take minutes."""
_NOT_OURS: Final = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.FAILED_PRECONDITION)
"""Nobody listens, or serves another root."""
_INVENTORIES: Final = msgspec.json.Decoder(Inventory)
_REPORTS: Final = msgspec.json.Decoder(CleanReport)

T = TypeVar("T", Inventory, CleanReport)


class NodeCache:
    """The cache below `root`, an existing directory. `address` is where its serve listens, if one runs.

    Every method raises ServeUnreachable, MetadataError, OSError.
    """

    def __init__(self, root: str, address: str) -> None:
        self._root = os.path.realpath(root)
        self._address = address

    def inventory(self) -> Inventory:
        """What is here."""
        request = pb.CacheInventoryRequest(root=self._root)
        return self._ask(
            lambda stub: stub.CacheInventory(request, timeout=_ANSWER_SECONDS).json,
            lambda cache: cache.inventory(),
            _INVENTORIES,
        )

    def clean(self, selection: Selection, *, dry_run: bool) -> CleanReport:
        """Remove what the selection says, or only say what that would be."""
        request = pb.CacheCleanRequest(
            root=self._root, selection_json=msgspec.json.encode(selection), dry_run=dry_run
        )
        return self._ask(
            lambda stub: stub.CacheClean(request, timeout=_ANSWER_SECONDS).json,
            lambda cache: cache.clean(selection, dry_run=dry_run),
            _REPORTS,
        )

    def _ask(
        self,
        served: Callable[[AdminStub], bytes],
        offline: Callable[[OfflineCache], T],
        answers: msgspec.json.Decoder[T],
    ) -> T:
        if os.path.exists(self._address):
            with grpc.insecure_channel(f"unix:{self._address}") as channel:
                try:
                    stub = AdminStub(channel)  # type: ignore[no-untyped-call]
                    return answers.decode(served(stub))
                except grpc.RpcError as error:
                    if error.code() not in _NOT_OURS:
                        raise ServeUnreachable(f"layergate serve: {error.details()}") from error
        try:
            return offline(OfflineCache(self._root))
        except MetadataInUse as error:
            raise ServeUnreachable(
                f"{self._root} is in use by a layergate serve that does not answer on {self._address}: "
                "give the --address that it has"
            ) from error
