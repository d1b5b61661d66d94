"""From what people name as DST to the destination that writes it."""

from __future__ import annotations

from collections.abc import Callable

from anyio import to_thread

from fetcher.errors import InvalidReference
from fetcher.images import ImageDestination
from fetcher.images.naming import ArchivePlace, ContainerdPlace, LayerPlace, LayoutPlace, Place, RegistryPlace
from fetcher.manifest import Platform
from fetcher.reference import parse_reference
from fetcher.sources import BlobSources
from snapshotter.convert.names import source_names
from snapshotter.image_places import Containerd

Sent = Callable[[str, int], None]
"""Told a blob's digest and how many of its bytes have been sent."""


async def open_destination(
    place: Place,
    *,
    source: Place,
    registries: BlobSources,
    plain_http: bool,
    containerd: Containerd,
    platform: Platform | None,
    sent: Sent,
) -> ImageDestination:
    """The destination that writes to `place` what comes from `source`; to be entered.

    A bare path is an archive. An archive without a name takes over the source's. Raises InvalidReference,
    any other FetchError of the source's.
    """
    # Each imports what it alone needs: gRPC for containerd, an HTTP client for a registry.
    match place:
        case RegistryPlace(reference):
            from fetcher.images.registry_destination import RegistryDestination

            client = await registries.client(reference, plain_http=plain_http)
            near = source.reference if isinstance(source, RegistryPlace) else None
            return RegistryDestination(client, reference, source=near, sent=sent)
        case LayoutPlace(directory, tag):
            from fetcher.images.layout_destination import LayoutDestination

            return LayoutDestination(directory, tag)
        case ContainerdPlace(reference=reference):
            from snapshotter.containerd.image_destination import ContainerdDestination

            if reference.tag is None or reference.digest is not None:
                raise InvalidReference(f"{place}: a new image has a tag, and its digest comes of it")
            return ContainerdDestination(
                place, address=containerd.address, namespace=containerd.namespace, sent=sent
            )
        case ArchivePlace(path, name):
            from fetcher.images.archive_destination import ArchiveDestination

            names = [parse_reference(name)] if name else await to_thread.run_sync(source_names, source)
            return ArchiveDestination(path, names, platform=platform)
        case LayerPlace(path):
            return await open_destination(
                ArchivePlace(path),
                source=source,
                registries=registries,
                plain_http=plain_http,
                containerd=containerd,
                platform=platform,
                sent=sent,
            )
