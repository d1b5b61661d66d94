"""Accounts of a cleaning: what was planned and what came of it make the report. Blocking; changes nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterable, Sequence

import msgspec

from fetcher.store import LayerStore
from snapshotter.cache.plan import Plan
from snapshotter.cache.removal import SetAside
from snapshotter.cache.values import CachedLayer, CleanReport, Leftover, Problem
from snapshotter.manual.state import ManualMounts


class Account:
    """One cleaning, from its beginning on."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._free = shutil.disk_usage(root).free
        self._problems: list[Problem] = []

    def note(self, problem: Problem | None) -> None:
        """Something could not be removed."""
        if problem is not None:
            self._problems.append(problem)

    def deleted(self, path: str, reason: str | None) -> None:
        """A directory was deleted, unless there is a reason why not."""
        self.note(None if reason is None else Problem(path, reason))

    def report(
        self,
        layers: Sequence[CachedLayer],
        plan: Plan,
        *,
        leftovers: Sequence[Leftover],
        aside: SetAside | None = None,
        dry_run: bool = False,
    ) -> CleanReport:
        """What came of the plan; of a dry run, what would."""
        if aside is None:
            removed, kept = list(plan.remove), list(plan.kept)
        else:
            removed = [layer for layer in plan.remove if layer.layer in aside.dead]
            busy = [
                msgspec.structs.replace(layer, used_by=aside.kept[layer.layer])
                for layer in plan.remove
                if layer.layer in aside.kept
            ]
            kept = [*plan.kept, *busy]
        return CleanReport(
            dry_run=dry_run,
            removed=removed,
            kept=kept,
            unknown=list(plan.unknown),
            leftovers=list(leftovers),
            problems=self._problems,
            freed_bytes=0 if dry_run else shutil.disk_usage(self._root).free - self._free,
            bytes_left=sum(layer.bytes for layer in layers) - sum(layer.bytes for layer in removed),
            done=not (kept or plan.unknown or plan.excess or self._problems),
            orphaned=[state.mountpoint for state in ManualMounts(self._root).all() if state.orphaned()],
        )


def left_by(plan: Plan, store: LayerStore, leftovers: Iterable[Leftover]) -> list[Leftover]:
    """Those of `leftovers` that do not lie in a layer which goes as a whole."""
    going = tuple(store.directory(layer.layer) + os.sep for layer in plan.remove)
    return [leftover for leftover in leftovers if not leftover.path.startswith(going)]
