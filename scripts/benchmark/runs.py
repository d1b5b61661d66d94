"""What `scripts/bench` does inside its namespaces: each run on a fresh file system, engines taking turns."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from typing import Final

from scripts.benchmark import engines
from scripts.benchmark.engines import Engine, Lazy
from scripts.benchmark.growth import FILES, IDLE_IMAGES, IMAGES, LAYERS, crowd, grow
from scripts.benchmark.link import Link, Measured, Profile
from scripts.benchmark.misses import open_small_files, read_large_file
from scripts.benchmark.peer import peer
from scripts.benchmark.pulls import Pull, Workload, cold_start
from scripts.benchmark.reads import compare_reads
from scripts.benchmark.registry import FarRegistry, PushedImage
from scripts.benchmark.results import (
    ESTARGZ,
    OPTIMIZED,
    OVERLAYFS,
    PEER_ESTARGZ,
    PEER_OPTIMIZED,
    Missing,
    Results,
    Starts,
    Subject,
)
from tests.integration.harness import fresh_file_system
from tests.integration.image import FORMS, built_image
from tests.integration.recipe import Recipe

_FILES_OF_AN_IDLE_IMAGE: Final = (5_000, 3)
"""Files a layer, and layers: as many entries as the image of scripts/image has."""

Say = Callable[[str], None]
Start = Callable[[str], AbstractContextManager[Engine]]


@dataclass(frozen=True, slots=True)
class Pushed:
    """An image in the registry in all its forms."""

    recipe: Recipe
    forms: dict[str, PushedImage]

    @property
    def workload(self) -> Workload:
        """What is run in it."""
        return Workload(self.recipe.command, self.recipe.output)


@dataclass(frozen=True, slots=True)
class Bench:
    """A link with a registry at its far end, and images in it."""

    work: str
    link: Link
    measured: Measured
    registry: FarRegistry
    images: dict[str, Pushed]
    say: Say

    def starts(self, image: Pushed, runs: int, peer_program: Sequence[str] = ()) -> Starts:
        """Cold starts of every form on every engine, `runs` times."""
        started: list[tuple[str, Start, str]] = [
            (OVERLAYFS, engines.overlayfs, "plain"),
            (OPTIMIZED, engines.lazy, "optimized"),
            (ESTARGZ, engines.lazy, "estargz"),
        ]
        if peer_program:

            def start_peer(directory: str) -> AbstractContextManager[Engine]:
                return peer(directory, peer_program)

            started += [(PEER_OPTIMIZED, start_peer, "optimized"), (PEER_ESTARGZ, start_peer, "estargz")]
        subjects = {form: Subject(form, len(one.layers), one.size) for form, one in image.forms.items()}
        found = Starts(image.recipe.name, self.link.profile, self.measured, subjects)
        for number in range(1, runs + 1):
            for name, start, form in started:
                pull = self._cold_start(start, image, form)
                found.runs.setdefault(name, []).append(pull)
                self.say(f"{image.recipe.name}, run {number}, {name}: {_summary(pull)}")
            found.watched.append(self._cold_start(engines.lazy, image, "optimized", watch_memory=True))
        return found

    def _cold_start(self, start: Start, image: Pushed, form: str, *, watch_memory: bool = False) -> Pull:
        with self._fresh() as directory, start(directory) as engine:
            return cold_start(
                engine,
                image.forms[form],
                image.workload,
                self.link,
                self.registry,
                watch_memory=watch_memory,
            )

    def reads(self, image: Pushed, results: Results, runs: int, peer_program: Sequence[str] = ()) -> None:
        """Walks on a lazy lower, after the swap, on overlayfs, and on the peer once it has everything."""
        forms, name = image.forms, image.recipe.name
        with self._fresh() as directory, ExitStack() as stack:
            engine = stack.enter_context(engines.lazy(directory))
            other: Engine | None = None
            if peer_program:
                os.mkdir(f"{directory}/peer")
                other = stack.enter_context(peer(f"{directory}/peer", peer_program))
            results.reads.extend(
                compare_reads(
                    name,
                    engine,
                    forms["optimized"],
                    forms["plain"],
                    self.work,
                    passes=runs + 2,
                    peer=other,
                )
            )
        self.say(f"{name}: read")

    def missing(self, images: Sequence[Pushed], results: Results, runs: int) -> None:
        """Opens of missing files while streaming and without, and large reads, over this link."""
        found = Missing(self.link.profile, self.measured)
        results.missing.append(found)
        for image in images:
            name, form = image.recipe.name, image.forms["estargz"]
            for config in ("", engines.ON_DEMAND):
                for _ in range(runs):
                    with self._lazy(config) as engine:
                        found.opens.append(
                            open_small_files(
                                name, engine, form, self.link, self.registry, streaming=not config
                            )
                        )
            for _ in range(runs):
                with self._lazy(engines.ON_DEMAND) as engine:
                    found.large.append(read_large_file(name, engine, form, self.registry))
            self.say(f"{name}: opens and reads of missing files")

    def memory(self, results: Results) -> None:
        """Idle with ten complete images."""
        files, layers = _FILES_OF_AN_IDLE_IMAGE
        results.idle.extend(
            crowd((IDLE_IMAGES,), self.registry, self.work, self.say, files=files, layers=layers)
        )

    def growth(self, results: Results) -> None:
        """Ever more files, layers and images."""
        for of, sizes in (("files", FILES), ("layers", LAYERS)):
            results.growth.append(grow(of, sizes, self.link, self.registry, self.work, self.say))
        results.images.extend(crowd(IMAGES, self.registry, self.work, self.say))

    @contextmanager
    def _lazy(self, config: str = "") -> Iterator[Lazy]:
        with self._fresh() as directory, engines.lazy(directory, config=config) as engine:
            yield engine

    def _fresh(self) -> AbstractContextManager[str]:
        return fresh_file_system(f"{self.work}/fs")


@contextmanager
def bench(work: str, profile: Profile, recipes: Sequence[Recipe], say: Say) -> Iterator[Bench]:
    """The link up and measured, with images (built before) pushed. `work` keeps the registry's data."""
    with Link(profile, work) as link, FarRegistry(link, f"{work}/registry") as registry:
        images = {}
        for recipe in recipes:
            built = built_image(recipe, say)
            forms = {form: registry.push(getattr(built, form), recipe.name, form) for form in FORMS}
            images[recipe.name] = Pushed(recipe, forms)
        registry.warm_up()
        measured = link.measure(next(iter(images.values())).forms["plain"].largest_url)
        say(f"link: {measured.mbit_per_second} Mbit/s, {measured.round_trip_ms} ms")
        yield Bench(work, link, measured, registry, images, say)


def _summary(pull: Pull) -> str:
    return (
        f"pulled {pull.pulled:.2f} s, first output {pull.first_output:.2f} s, "
        f"complete {pull.complete:.2f} s, CPU {pull.cpu_to_complete:.2f} s"
        + (f"; {pull.busy_before:.0%} busy before" if pull.busy_before > 0.05 else "")
    )
