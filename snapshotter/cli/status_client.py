"""Asking a running `layergate serve`; blocking, for commands."""

from __future__ import annotations

import grpc

from snapshotter.errors import ServeUnreachable
from snapshotter.proto import admin_pb2 as pb
from snapshotter.proto.admin_pb2_grpc import AdminStub

_ANSWER_SECONDS = 10.0


def read_status(address: str) -> bytes:
    """The status as JSON. Raises ServeUnreachable if nobody answers on the socket."""
    with grpc.insecure_channel(f"unix:{address}") as channel:
        try:
            stub = AdminStub(channel)  # type: ignore[no-untyped-call]
            reply = stub.Status(pb.StatusRequest(), timeout=_ANSWER_SECONDS)
        except grpc.RpcError as error:
            raise ServeUnreachable(
                f"layergate serve does not answer on {address}: "
                "is it running, with the same --address, and are you root?"
            ) from error
    return bytes(reply.json)
