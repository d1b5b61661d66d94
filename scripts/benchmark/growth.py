"""What it costs to grow: files in one layer, layers in one image, images on one node. Hand-built images."""

from __future__ import annotations

import os
import random
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from scripts.benchmark import engines
from scripts.benchmark.engines import Lazy
from scripts.benchmark.group import Memory
from scripts.benchmark.link import Link
from scripts.benchmark.pulls import Pull, Workload, cold_start, settle
from scripts.benchmark.registry import FarRegistry, PushedImage
from scripts.containers import run_to_first_output
from tests import estargz, oci
from tests.estargz import Layer
from tests.integration.harness import call, fresh_file_system
from tests.integration.manual import write_layout
from tests.integration.node import program_files

FILES: Final = (12_500, 25_000, 50_000, 100_000)
LAYERS: Final = (16, 32, 64, 127)
IMAGES: Final = (1, 25, 50, 100, 150, 200)
IDLE_IMAGES: Final = 10

_WORKLOAD: Final = Workload(("/bin/sh", "-c", "echo here"), "here\n")
_FILES_A_DIRECTORY: Final = 100
_FILE_SIZE: Final = 600
_FILES_A_LAYER: Final = 100
_FILES_AN_IMAGE: Final = 5_000
_IDLE_SECONDS: Final = 10.0
_SOON_IDLE: Final = "[lazy]\nmount_seconds = 1\n"
"""Otherwise what containerd might still be about to mount, and the mounter, are kept for a minute."""


@dataclass(frozen=True, slots=True)
class Growth:
    """Cold starts of ever larger images; `of` is what grows: files, layers."""

    of: str
    sizes: list[int]
    lazy: list[Pull]
    overlayfs: list[Pull]


@dataclass(frozen=True, slots=True)
class Crowd:
    """A node with so many complete images. Seconds are the last image's, from its pull on."""

    images: int
    pulled: float
    first_output: float
    idle: Memory


def files_layer(seed: int, count: int) -> Layer:
    """An eStargz layer of `count` small files in directories of a hundred."""
    noise = random.Random(seed)  # noqa: S311 - the same in every run
    text = noise.randbytes(_FILE_SIZE // 2).hex()
    entries = [estargz.dir("srv/"), estargz.dir(f"srv/{seed}/")]
    for number in range(count):
        if number % _FILES_A_DIRECTORY == 0:
            directory = f"srv/{seed}/{number // _FILES_A_DIRECTORY:05}/"
            entries.append(estargz.dir(directory))
        entries.append(estargz.file(f"{directory}{number:07}.txt", f"{number}\n{text}".encode()))
    return estargz.build([estargz.no_landmark(), *entries], level=1)


def grow(
    of: str, sizes: Sequence[int], link: Link, registry: FarRegistry, work: str, say: Callable[[str], None]
) -> Growth:
    """Measure images with ever more `of`: files, layers."""
    programs = _programs()
    lazy: list[Pull] = []
    overlayfs: list[Pull] = []
    for size in sizes:
        if of == "files":
            layers = [programs, files_layer(size, size)]
        else:
            layers = [programs, *(files_layer(number, _FILES_A_LAYER) for number in range(1, size))]
        image = _pushed(registry, work, f"growth/{of}-{size}", layers)
        for start, found in ((engines.overlayfs, overlayfs), (engines.lazy, lazy)):
            with fresh_file_system(f"{work}/fs") as directory, start(directory) as engine:
                found.append(cold_start(engine, image, _WORKLOAD, link, registry, watch_memory=True))
        pull = lazy[-1]
        say(f"{size} {of}: first output {pull.first_output} s, complete {pull.complete} s")
    return Growth(of, list(sizes), lazy, overlayfs)


def crowd(
    marks: Sequence[int],
    registry: FarRegistry,
    work: str,
    say: Callable[[str], None],
    *,
    files: int = _FILES_A_LAYER,
    layers: int = 1,
) -> list[Crowd]:
    """Pull images one after another onto one node, and look at it when it has as many as the marks say.

    Each has `layers` layers of its own with `files` files, on a layer that all share.
    """
    programs = _programs()
    found = []
    with fresh_file_system(f"{work}/fs") as directory, engines.lazy(directory, config=_SOON_IDLE) as engine:
        for number in range(1, marks[-1] + 1):
            own = [files_layer(number * 100 + layer, files) for layer in range(layers)]
            image = _pushed(registry, work, f"growth/crowd-{files}-{number}", [programs, *own])
            if number in marks:
                found.append(_look(engine, image, registry, number))
                say(
                    f"{number} images: first output {found[-1].first_output} s, idle {found[-1].idle.pss} MiB"
                )
            else:
                _pull(engine, image)
                engine.wait_until_on_disk(image)
    return found


def _look(engine: Lazy, image: PushedImage, registry: FarRegistry, number: int) -> Crowd:
    settle(registry)
    begin = time.monotonic()
    _pull(engine, image)
    pulled = time.monotonic() - begin
    first, _ = run_to_first_output(
        engine.containerd, image.reference, _WORKLOAD.command, snapshotter=engine.snapshotter
    )
    engine.wait_until_on_disk(image)
    time.sleep(_IDLE_SECONDS)
    return Crowd(number, round(pulled, 3), round(first - begin, 3), engine.memory())


def _pull(engine: Lazy, image: PushedImage) -> None:
    with engine.group.entered():
        call(engine.pull_command(image.reference))


def _programs() -> Layer:
    return estargz.build([*program_files("sh", "sleep"), estargz.landmark()])


def _pushed(registry: FarRegistry, work: str, repository: str, layers: Sequence[Layer]) -> PushedImage:
    layout = os.path.join(work, "layout")
    write_layout(layout, oci.image(layers, command=_WORKLOAD.command))
    with open(f"{layout}/oci-layout", "w", encoding="ascii") as file:
        file.write('{"imageLayoutVersion": "1.0.0"}')
    try:
        return registry.push(layout, repository, "test")
    finally:
        shutil.rmtree(layout)
