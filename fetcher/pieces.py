"""Pieces of files, out of inflated members and verified. Pure; no I/O."""

from __future__ import annotations

import hashlib

from fetcher.errors import VerificationError
from fetcher.nodes import Chunk, Node


def verified_piece(output: bytes, node: Node, chunk: Chunk) -> memoryview:
    """The bytes of `chunk` within its member's `output`; raises VerificationError if they are wrong."""
    piece = memoryview(output)[chunk.inner_offset : chunk.inner_offset + chunk.size]
    if len(piece) != chunk.size:
        raise VerificationError(
            f"{node.path!r}: the layer has {len(piece)} of the {chunk.size} bytes at {chunk.file_offset}"
        )
    if hashlib.sha256(piece).digest() != chunk.digest:
        raise mismatch(node, chunk)
    return piece


def mismatch(node: Node, chunk: Chunk) -> VerificationError:
    """The error for bytes of `chunk` that do not have its digest."""
    return VerificationError(
        f"{node.path!r}: the bytes at {chunk.file_offset} do not have the digest sha256:{chunk.digest.hex()}"
    )
