"""What tells of changes of the mount table."""

from __future__ import annotations

from pathlib import Path

import anyio

from mounter.mountinfo import read_mounts
from snapshotter.manual.watching import MountChanges, mount_changes
from tests.integration.harness import call


def test_changes_are_told_of_before_and_while_somebody_waits(tmp_path: Path) -> None:
    async def watch() -> None:
        with mount_changes() as changes:
            # Nobody waits yet.
            call(["mount", "-t", "tmpfs", "tmpfs", str(tmp_path)])
            try:
                await anyio.sleep(0.05)
                await told(changes)
                assert str(tmp_path) in {mount.target for mount in read_mounts()}
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(told, changes)
                    await anyio.sleep(0.05)
                    call(["mount", "-o", "remount,ro", str(tmp_path)])
            finally:
                call(["umount", str(tmp_path)])

    async def told(changes: MountChanges) -> None:
        with anyio.fail_after(5):  # half of what it waits without a change
            await changes.next()

    anyio.run(watch)
