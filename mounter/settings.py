"""What can be set about the mounter. A change reaches a running one by `Mounter.configure`."""

from __future__ import annotations

from typing import Annotated

import msgspec

from fetcher.settings import RegistrySettings

Seconds = Annotated[float, msgspec.Meta(gt=0)]
Count = Annotated[int, msgspec.Meta(gt=0)]


class MounterSettings(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """Times in seconds, sizes in bytes. Defaults are not sent: an older mounter knows fewer fields."""

    registry: RegistrySettings = msgspec.field(default_factory=RegistrySettings)

    wait_seconds: Seconds = 10.0
    """The longest that an open waits for its file, and a read for the next byte of a large one.

    One that a prefetch range is just bringing may take longer.
    """

    large_file_seconds: Seconds = 2.0
    """A file is served chunk by chunk when what is missing of it would take longer than this."""

    assumed_bandwidth: Count = 12_500_000
    """Bytes a second, as long as nothing has been fetched yet; 100 Mbit/s."""

    assumed_round_trip: Seconds = 0.05
    """Time to the first byte, as long as nothing has been fetched yet."""

    concurrent_requests: Count = 16
    """Requests that may be under way at a time."""

    read_ahead: Count = 32 << 20
    """Compressed bytes asked for ahead of a sequential reader of a large file."""

    neighbour_bytes: Annotated[int, msgspec.Meta(ge=0)] = 2 << 20
    """Compressed bytes that are asked for behind a missed file at most, for the files there; 0: none."""

    late_seconds: Seconds = 2.0
    """How long a link in LATE stands after it was handed over; the kernel needs microseconds of it."""

    idle_seconds: Seconds = 30.0
    """After so long without use, a layer's tree and a file that came half are given up."""

    record: bool = False
    """Whether to keep which files were waited for (`mounter.waits`); serve's [record] enabled."""

    log_limit: Annotated[int, msgspec.Meta(ge=4096)] = 4 << 20
    """Size at which mounter.log begins anew; the one before it stays as mounter.log.1."""
