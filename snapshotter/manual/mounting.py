"""`layergate mount` without its command line: start a keeper, follow it, leave nothing behind. Blocking."""

from __future__ import annotations

import faulthandler
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import anyio
import msgspec

from fetcher.logs import configure_logs, get_logger
from mounter.logfile import last_line
from snapshotter.config import Config, LogConfig
from snapshotter.interrupts import ignore_interrupts
from snapshotter.manual.errors import KeeperFailed
from snapshotter.manual.keeper import Ending, Keeper
from snapshotter.manual.launch import SocketReporter, start_keeper
from snapshotter.manual.messages import Complete, Failed, Message, Mounted, Reporter
from snapshotter.manual.release import take_away
from snapshotter.manual.request import MountRequest
from snapshotter.manual.state import ManualMounts

log = get_logger("layergate.manual")

Explain = Callable[[Exception], Failed]
"""An error as people and scripts are told of it."""

_ENDINGS = {
    Ending.UNMOUNTED: "somebody unmounted it",
    Ending.INTERRUPTED: "it was interrupted",
    Ending.TERMINATED: "its keeper was terminated",
}


def mount_in_background(
    request: MountRequest,
    config: Config,
    *,
    explain: Explain,
    show: Callable[[Message], None],
    wait: bool,
) -> None:
    """Return when the mount is up, or with `wait` when it is native; a keeper of its own sees to it.

    `show` is told each message. Raises KeeperFailed, and whatever interrupts it; nothing is left then. In any
    case the process ignores interrupts afterwards: it is to end.
    """

    def run(reporter: SocketReporter) -> None:
        configure_logs(config.log.level)
        faulthandler.enable()
        try:
            ending = anyio.run(Keeper(request, config, reporter).run)
        except Exception as error:
            # The boundary of the process: whatever it is, the command has to hear of it, and the log.
            log.exception("keeper_failed")
            reporter.tell(explain(error))
        else:
            if ending is not Ending.COMPLETE:
                reporter.tell(Failed(f"{request.mountpoint}: {_ENDINGS[ending]}", 1))

    mounts = ManualMounts(request.root)
    mounts.create_directories()
    with _nothing_left(request) as path, start_keeper(run, path) as keeper:
        for message in keeper.messages():
            if isinstance(message, Failed):
                keeper.wait()
                raise KeeperFailed(message.message, code=message.code)
            show(message)
            if isinstance(message, Mounted) and not wait:
                keeper.keep()
                ignore_interrupts()
                return
            if isinstance(message, Complete):
                keeper.wait()
                ignore_interrupts()
                return
        keeper.wait()
        raise KeeperFailed(
            f"the keeper of {request.mountpoint} ended without a word; its log: {last_line(path)}", code=1
        )


@contextmanager
def _nothing_left(request: MountRequest) -> Iterator[str]:
    """Nothing is left of the mount if the block fails or is interrupted; gives where its log goes.

    A keeper undoes everything itself, but one that was killed, or was done already when it was interrupted.
    """
    mounts = ManualMounts(request.root)
    log_path = mounts.log(request.id)
    try:
        yield log_path
    except BaseException:
        ignore_interrupts()
        take_away(request.root, request.id)
        with suppress(FileNotFoundError):
            os.unlink(log_path)
        raise


def mount_in_foreground(request: MountRequest, config: Config, reporter: Reporter) -> Ending:
    """Keep the mount in this process until it is native, or a signal ends it and undoes it.

    Raises what `Keeper.run` raises. At the end the process is one that ignores interrupts.
    """
    quiet = LogConfig("warning" if config.log.level == "info" else config.log.level)
    config = msgspec.structs.replace(config, log=quiet)
    configure_logs(quiet.level)
    with _nothing_left(request):
        ending = anyio.run(Keeper(request, config, reporter).run)
        ignore_interrupts()
    return ending
