"""Reload of the configuration when its file or the credentials' file changes."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TypeAlias

import anyio
import pytest
from anyio.streams.memory import MemoryObjectReceiveStream

from fetcher.logs import configure_logs
from snapshotter.config import Config
from snapshotter.reload import watch_config

pytestmark = pytest.mark.anyio

Configs: TypeAlias = MemoryObjectReceiveStream[Config]


def limited(rate: int) -> str:
    """A configuration."""
    return f"[stream]\nbytes_per_second = {rate}\n"


def replace(path: Path, text: str) -> None:
    """Write as editors do: by rename."""
    new = path.with_suffix(".new")
    new.write_text(text)
    os.replace(new, path)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "config.toml"
    path.write_text("")
    return path


@pytest.fixture
async def configs(path: Path) -> AsyncIterator[Configs]:
    """What is applied, while the file is watched."""
    sent, applied = anyio.create_memory_object_stream[Config](100)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch_config, str(path), [], sent.send_nowait)
        await anyio.sleep(0.1)
        with sent, applied:
            yield applied
        tasks.cancel_scope.cancel()


async def until_applied(configs: Configs, rate: int) -> None:
    with anyio.fail_after(20):
        while (await configs.receive()).stream.bytes_per_second != rate:
            pass


async def test_a_file_that_is_written_or_replaced_is_applied(path: Path, configs: Configs) -> None:
    replace(path, limited(1))
    await until_applied(configs, 1)
    path.write_text(limited(2))
    await until_applied(configs, 2)


async def test_a_file_with_an_error_is_left_out(
    path: Path, configs: Configs, capfd: pytest.CaptureFixture[str]
) -> None:
    configure_logs("info")
    errors = ""
    replace(path, "[stream")
    with anyio.fail_after(20):
        while "event=config_not_reloaded" not in errors:
            await anyio.sleep(0.02)
            errors += capfd.readouterr().err
    assert configs.statistics().current_buffer_used == 0
    assert str(path) in errors
    replace(path, limited(3))
    await until_applied(configs, 3)


async def test_it_ends_while_changes_come(path: Path) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(watch_config, str(path), [], lambda config: None)
        await anyio.sleep(0.1)
        tasks.cancel_scope.cancel()
        replace(path, limited(1))
        time.sleep(1)  # noqa: ASYNC251  watchdog tells of it before the event loop goes on
