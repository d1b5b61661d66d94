"""Pushing to a repository: blobs, unless they are there; manifests; tags. OCI distribution-spec, "push".

Credentials go to the registry's own host and port alone, wherever an upload's Location leads. On the event
loop; safe to use from many tasks.
"""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from urllib.parse import urlencode

from fetcher.content import BytesContent, Content, Part
from fetcher.errors import RegistryError, RegistryNotFound, RegistryProtocolError, RegistryUnauthorized
from fetcher.exchange import Answer, referred_url
from fetcher.http import Subject
from fetcher.manifest import Document
from fetcher.reference import Reference, parse_digest
from fetcher.registry import RegistryClient
from fetcher.retries import retried
from fetcher.upload import CHUNK_SIZE, BlobUpload, Sent, begin_upload


class RepositoryPush:
    """Pushes to the repository of `reference`."""

    def __init__(self, client: RegistryClient, reference: Reference, *, chunk_size: int = CHUNK_SIZE) -> None:
        self._client = client
        self._reference = reference
        self._chunk_size = chunk_size
        self._begun: dict[str, Answer] = {}
        self._spare: Answer | None = None

    async def require_access(self) -> None:
        """See that we may push, by beginning an upload, which the first blob then goes on with.

        Raises RegistryError.
        """
        self._spare = await retried(
            self._client.retries(), lambda: begin_upload(self._client, self._subject("an upload"))
        )

    async def cancel_uploads(self) -> None:
        """Tell the registry of uploads that were begun and not needed; one that does not care is no error."""
        answers = [*self._begun.values(), *([] if self._spare is None else [self._spare])]
        self._begun, self._spare = {}, None
        subject = self._subject("an upload")
        for answer in answers:
            with suppress(RegistryError):
                location = referred_url(subject, answer.url, answer.headers)
                async with self._client.write(
                    subject, location, method="DELETE", accept=(200, 202, 204, 404, 405)
                ):
                    pass

    async def has_blob(self, digest: str) -> bool:
        """Whether the repository has the blob. Raises RegistryError."""
        subject = self._subject(digest)

        async def attempt() -> bool:
            path = self._path(f"blobs/{parse_digest(digest)}")
            async with self._client.write(subject, path, method="HEAD", accept=(200, 404)) as answer:
                return answer.status == 200

        return await retried(self._client.retries(), attempt)

    async def mount_blob(self, digest: str, repository: str) -> bool:
        """Have the registry take a blob over from another of its repositories; False if it does not.

        It may have begun an upload instead, with which `upload` goes on. Raises RegistryError, unless it is
        only that the registry does not let us.
        """
        subject = self._subject(digest)
        query = "?" + urlencode({"mount": parse_digest(digest), "from": repository})
        try:
            answer = await retried(self._client.retries(), lambda: begin_upload(self._client, subject, query))
        except (RegistryUnauthorized, RegistryNotFound, RegistryProtocolError):
            return False
        if answer.status == 202:
            self._begun[digest] = answer
        return answer.status == 201

    async def upload(self, digest: str, content: Content, *, sent: Sent) -> None:
        """Upload a blob, whose digest the registry checks. Raises RegistryError."""
        begun = self._begun.pop(digest, None)
        if begun is None:
            begun, self._spare = self._spare, None
        upload = BlobUpload(
            self._client,
            self._subject(parse_digest(digest)),
            digest,
            content,
            is_there=lambda: self.has_blob(digest),
            begun=begun,
            chunk_size=self._chunk_size,
            sent=sent,
        )
        await upload.run()

    async def put_manifest(self, document: Document, target: str) -> None:
        """Store a manifest or an index as `target`, a tag or its digest. Raises RegistryError."""
        subject = self._subject(target)
        body = Part(BytesContent(document.data), 0, len(document.data), lambda _: None)

        async def attempt() -> None:
            async with self._client.write(
                subject,
                self._path(f"manifests/{target}"),
                method="PUT",
                headers={"Content-Type": document.media_type},
                body=body,
                accept=(200, 201, 202),
            ) as answer:
                stored = answer.headers.get("docker-content-digest", document.digest)
                if stored != document.digest:
                    raise subject.protocol_error(f"it was stored as {stored}, and not as {document.digest}")

        await retried(self._client.retries(), attempt)

    def _path(self, rest: str) -> str:
        return f"/v2/{self._reference.repository}/{rest}"

    def _subject(self, target: str) -> Subject:
        return dataclasses.replace(self._client.subject(self._reference, target), pushing=True)
