"""Opening any place that an image can be read from, containerd among them."""

from __future__ import annotations

from dataclasses import dataclass

from fetcher.images.naming import ArchivePlace, ContainerdPlace, LayoutPlace, RegistryPlace, open_source
from fetcher.images.seams import ImageSource
from fetcher.sources import BlobSources


@dataclass(frozen=True, slots=True)
class Containerd:
    """Which containerd is meant: its socket, and the namespace within."""

    address: str
    namespace: str


def open_image(
    place: RegistryPlace | LayoutPlace | ArchivePlace | ContainerdPlace,
    *,
    registries: BlobSources,
    plain_http: bool = False,
    containerd: Containerd,
) -> ImageSource:
    """The source that reads `place`; nothing is touched before it is entered."""
    if isinstance(place, ContainerdPlace):
        # gRPC takes 60 ms to import.
        from snapshotter.containerd.image_source import ContainerdImageSource

        return ContainerdImageSource(place, address=containerd.address, namespace=containerd.namespace)
    return open_source(place, registries=registries, plain_http=plain_http)
