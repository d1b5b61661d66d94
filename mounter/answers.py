"""The one place where an error becomes the errno that the kernel is answered with."""

from __future__ import annotations

import errno
import functools
from collections.abc import Callable, Coroutine
from typing import Any, Final, ParamSpec, TypeVar

import pyfuse3

from fetcher.errors import FetchError, StoreError
from fetcher.logs import get_logger
from mounter.errors import MounterError

log = get_logger("layergate.mounter")

_PASSED_ON: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.ENOMEM, errno.EMFILE, errno.ENFILE})
"""What the local system says that means the same to the reader; the rest would mislead: EACCES, say."""

P = ParamSpec("P")
T = TypeVar("T")


def errno_of(error: Exception) -> int:
    """EIO for whatever kept the bytes away, but for a local shortage by its own name."""
    if isinstance(error, StoreError | OSError) and error.errno in _PASSED_ON:
        return error.errno
    return errno.EIO


def answered(handler: Callable[P, Coroutine[Any, Any, T]]) -> Callable[P, Coroutine[Any, Any, T]]:
    """A FUSE handler that raises nothing but FUSEError: anything else would end the session."""

    @functools.wraps(handler)
    async def wrapped(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return await handler(*args, **kwargs)
        except pyfuse3.FUSEError:
            raise
        except (FetchError, MounterError, OSError) as error:
            log.warning("request_failed", request=handler.__name__, error=str(error))
            raise pyfuse3.FUSEError(errno_of(error)) from error
        except Exception as defect:
            # A defect met by one request must not take the mount away from every container.
            log.exception("request_broken", request=handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from defect

    return wrapped
