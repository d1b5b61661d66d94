"""When to try a registry again, and how long to wait before: backoff with full jitter.

Waits are drawn from [0, min(LONGEST_BACKOFF, FIRST_BACKOFF * 2^n)), so that a
thousand nodes that lost a registry together do not return to it together. A
Retry-After is kept to, with the same jitter on top.
"""

from __future__ import annotations

import email.utils
import random
import time
from collections.abc import Awaitable, Callable
from typing import Final, TypeVar

import anyio

from fetcher.errors import RegistryError, RegistryUnavailable, RegistryUnreachable
from fetcher.logs import get_logger

log = get_logger("layergate.fetcher")

FIRST_BACKOFF: Final = 0.25
LONGEST_BACKOFF: Final = 15.0
LONGEST_RETRY_AFTER: Final = 60.0
"""A registry that asks for a longer wait, in seconds, is unavailable for our purposes."""

T = TypeVar("T")

Sleep = Callable[[float], Awaitable[None]]


class Busy(RegistryUnavailable):
    """429 or 5xx; `retry_after` seconds if the registry asked for a wait."""

    def __init__(self, message: str, *, host: str, status: int, retry_after: float | None) -> None:
        super().__init__(message, host=host, status=status)
        self.retry_after = retry_after


class CertificateRefused(RegistryUnreachable):
    """The registry's certificate is not one we trust; trying again does not help."""


class Retries:
    """The tries of one undertaking; `limit` of them in a row may bring nothing."""

    def __init__(self, limit: int, *, sleep: Sleep = anyio.sleep) -> None:
        self._limit = limit
        self._sleep = sleep
        self._failures = 0

    def progressed(self) -> None:
        """Something was brought: count the failures anew."""
        self._failures = 0

    async def wait(self, error: RegistryError) -> None:
        """Wait until it is time for another try; raises `error` if there should be none."""
        if not _is_transient(error) or self._failures >= self._limit:
            raise error
        delay = random.uniform(0, min(LONGEST_BACKOFF, FIRST_BACKOFF * 2.0**self._failures))  # noqa: S311 - jitter
        if isinstance(error, Busy) and error.retry_after is not None:
            delay += error.retry_after
        self._failures += 1
        log.info("registry_retry", host=error.host, failures=self._failures, wait=delay, error=str(error))
        await self._sleep(delay)


async def retried(retries: Retries, attempt: Callable[[], Awaitable[T]]) -> T:
    """What `attempt` returns, once it does; raises its RegistryError when there should be no further try."""
    while True:
        try:
            return await attempt()
        except RegistryError as error:
            await retries.wait(error)


def parse_retry_after(text: str | None) -> float | None:
    """Seconds to wait, from the seconds or the date of a Retry-After header; None if it has neither."""
    if not text:
        return None
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        return max(0.0, email.utils.parsedate_to_datetime(text).timestamp() - time.time())
    except (ValueError, OverflowError):
        return None


def _is_transient(error: RegistryError) -> bool:
    if isinstance(error, Busy):
        return error.retry_after is None or error.retry_after <= LONGEST_RETRY_AFTER
    return isinstance(error, RegistryUnreachable) and not isinstance(error, CertificateRefused)
