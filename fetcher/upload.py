"""The upload of one blob, by chunks, which goes on where a try ended. OCI distribution-spec, "pushing blobs".

    POST  blobs/uploads/                        202, Location: where the upload goes on
    PATCH LOCATION   Content-Range: 0-16777215  202, Location: where the next chunk goes, Range: what is there
    ...
    PUT   LOCATION?digest=sha256:...            201

After a failure GET LOCATION tells what has arrived. With a registry that has forgotten the upload it is begun
anew; one that takes no chunks gets the blob in one PUT, as a small blob is sent in any case.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from typing import Final

import httpx

from fetcher.content import Content, Part
from fetcher.errors import RegistryError, RegistryUnreachable
from fetcher.exchange import Answer, referred_url
from fetcher.http import Subject
from fetcher.registry import RegistryClient

CHUNK_SIZE: Final = 16 << 20
"""Bytes of a chunk, unless the registry wants larger ones; a smaller blob goes in one request."""

_BINARY: Final = {"Content-Type": "application/octet-stream"}
_RECEIVED: Final = re.compile(r"(?:bytes=)?0-([0-9]{1,18})")
_TAKEN: Final = (200, 201, 202, 204)
_LOST: Final = (404, 416)
"""The upload is not known any more, or not where we are with it."""
_NO_CHUNKS: Final = (400, 405, 411, 413, 415, 501)
"""What registries say to the first chunk of a blob that they only take whole."""

Sent = Callable[[int], None]
"""Told how many bytes of a blob have been sent; a failure sets it back."""


class _Interrupted(RegistryUnreachable):
    """The registry and we do not agree on how far the upload is; another try may mend that."""


async def begin_upload(client: RegistryClient, subject: Subject, query: str = "") -> Answer:
    """One try at beginning an upload: 202, or 201 if the registry has the blob. Raises RegistryError."""
    url = f"/v2/{subject.reference.repository}/blobs/uploads/{query}"
    async with client.write(subject, url, method="POST", accept=(201, 202)) as answer:
        return answer


class BlobUpload:
    """The blob `digest` with the bytes of `content`; `run` it once.

    `begun` is the answer to an upload that has been begun already; `is_there` asks whether the repository
    has the blob.
    """

    def __init__(
        self,
        client: RegistryClient,
        subject: Subject,
        digest: str,
        content: Content,
        *,
        is_there: Callable[[], Awaitable[bool]],
        begun: Answer | None = None,
        chunk_size: int = CHUNK_SIZE,
        sent: Sent,
    ) -> None:
        self._client = client
        self._subject = subject
        self._digest = digest
        self._content = content
        self._is_there = is_there
        self._chunk_size = chunk_size
        self._whole = content.size <= chunk_size
        self._sent = sent
        self._location: httpx.URL | None = None
        self._offset = 0
        self._farthest = 0
        self._failed = False
        self._completing = False
        if begun is not None:
            self._learn(begun)

    async def run(self) -> None:
        """Upload it; the registry checks its digest. Raises RegistryError."""
        retries = self._client.retries()
        while True:
            try:
                await self._go_on()
                return
            except RegistryError as error:
                self._failed = True
                # Only what never had come before counts, or a registry that forgets would be tried for ever.
                if self._offset > self._farthest:
                    self._farthest = self._offset
                    retries.progressed()
                await retries.wait(error)

    async def _go_on(self) -> None:
        """One try, from where the last one ended to the blob's end."""
        if self._completing and await self._is_there():
            return
        self._completing = False
        if self._failed and self._location is not None:
            await self._ask()
        if self._location is None:
            self._offset = 0
            self._learn(await begin_upload(self._client, self._subject))
        self._failed = False
        while not self._whole and self._offset < self._content.size:
            await self._send_chunk()
        await self._complete()

    async def _ask(self) -> None:
        """Learn how much has arrived; forget the upload if that is nothing, or if the registry has."""
        assert self._location is not None
        location, self._location = self._location, None
        if self._whole:
            return
        async with self._client.write(
            self._subject, location, method="GET", accept=(200, 204, 400, 404, 416)
        ) as answer:
            received = _received(answer)
            # "0-0" is one byte, or none: not worth telling apart.
            if answer.status < 300 and received is not None and 1 < received <= self._content.size:
                self._location = location
                self._offset = received
                if "location" in answer.headers:
                    self._learn(answer)

    async def _send_chunk(self) -> None:
        start = self._offset
        end = min(self._content.size, start + self._chunk_size)
        body = Part(self._content, start, end, self._sent)
        headers = _BINARY | {"Content-Range": f"{start}-{end - 1}"}
        refusals = _NO_CHUNKS if start == 0 else ()
        assert self._location is not None
        async with self._client.write(
            self._subject,
            self._location,
            method="PATCH",
            headers=headers,
            body=body,
            accept=(*_TAKEN, *_LOST, *refusals),
        ) as answer:
            if answer.status in refusals:
                self._whole = True
                self._learn(await begin_upload(self._client, self._subject))
                return
            if answer.status in _LOST:
                raise self._interrupted("the registry lost track of the upload")
            self._learn(answer)
            received = _received(answer)
            if received is not None and not start < received <= end:
                raise self._interrupted(f"of the bytes {start} to {end} there are {received}")
            self._offset = end if received is None else received

    async def _complete(self) -> None:
        """Send what is left, which is all or nothing, and have the registry make a blob of it."""
        start = 0 if self._whole else self._content.size
        body = Part(self._content, start, self._content.size, self._sent)
        assert self._location is not None
        # The location's own query carries the upload's state, and stays as it is.
        query = b"&".join(filter(None, (self._location.query, b"digest=" + self._digest.encode())))
        location = self._location.copy_with(query=query)
        self._completing = True
        async with self._client.write(
            self._subject,
            location,
            method="PUT",
            headers=_BINARY,
            body=body,
            accept=(*_TAKEN, *_LOST),
        ) as answer:
            if answer.status in _LOST:
                raise self._interrupted("the registry lost track of the upload")

    def _learn(self, answer: Answer) -> None:
        """Remember where the upload goes on."""
        self._location = referred_url(self._subject, answer.url, answer.headers)
        smallest = answer.headers.get("oci-chunk-min-length", "")
        if smallest.isdecimal():
            self._chunk_size = max(self._chunk_size, int(smallest))

    def _interrupted(self, message: str) -> _Interrupted:
        return _Interrupted(f"{self._subject}: {message}", host=self._subject.host)


def _received(answer: Answer) -> int | None:
    """How many bytes the registry says that it has; None if it does not say."""
    found = _RECEIVED.fullmatch(answer.headers.get("range", ""))
    return None if found is None else int(found[1]) + 1
