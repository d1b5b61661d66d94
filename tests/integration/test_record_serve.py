"""serve with `[record] enabled`: what the first container of an image opens, and what containers wait for."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from typing import Final

import pytest

from fetcher.record import Record, parse_record
from snapshotter.containerd.labels import chain_ids
from snapshotter.records.store import RecordStore
from tests import oci
from tests.estargz import build, dir, file
from tests.faulty_registry import FaultyRegistry
from tests.integration.harness import CommandFailed, mounts
from tests.integration.node import ON_DEMAND, Node, eventually, program_files, running_node

pytestmark = pytest.mark.containerd

RECORDING: Final = f"{ON_DEMAND}[mounter]\nneighbour_bytes = 0\n[record]\nenabled = true\n"
"""Without neighbours, which spare others a wait."""
PROGRAMS: Final = program_files("sh", "cat", "sleep")
WORDS: Final = ("one", "two", "three", "unread")


def image(tag: str) -> oci.Image:
    """Two lazy layers: programs below, what they read above."""
    return oci.image(
        [
            build([*PROGRAMS, dir("etc/"), file("etc/hidden", tag.encode())]),
            build([dir("srv/"), *(file(f"srv/{word}", f"{word} {tag}\n".encode()) for word in WORDS)]),
        ]
    )


@pytest.fixture(scope="module")
def shelf() -> Iterator[FaultyRegistry]:
    with FaultyRegistry() as registry:
        yield registry


@pytest.fixture(scope="module")
def node(file_system: str) -> Iterator[Node]:
    with running_node(f"{file_system}/record", config=RECORDING) as node:
        yield node


def chain(of: oci.Image) -> str:
    return chain_ids([layer.diff_id for layer in of.layers])[-1]


def opens(node: Node, of: oci.Image) -> Record:
    """The record of an image's first container, once it is there."""
    path = f"{node.layergate.root}/records/{chain(of).removeprefix('sha256:')}.jsonl"
    eventually(lambda: os.path.exists(path), "the record")
    with open(path, "rb") as record:
        return parse_record(record.read(), name=path)


def read(*words: str) -> list[str]:
    return ["/bin/sh", "-c", "; ".join(f"cat /srv/{word}" for word in words)]


def test_the_first_container_of_an_image_is_recorded_in_the_order_of_its_opens(
    node: Node, shelf: FaultyRegistry
) -> None:
    made = image("first")
    reference = shelf.add_image("record/first", made)
    node.pull(reference)
    assert node.run(reference, read("two", "one", "two")) == "two first\none first\ntwo first\n"
    record = opens(node, made)
    paths = [opened.path for opened in record.files]
    assert [path for path in paths if path.startswith("srv/")] == ["srv/two", "srv/one"]
    assert paths.index("bin/sh") < paths.index("bin/cat") < paths.index("srv/two")
    assert not record.header.incomplete
    assert record.header.chain == chain(made)
    assert record.header.images == [reference]
    assert [at.at for at in record.files] == sorted(at.at for at in record.files)

    # The second one changes nothing.
    node.run(reference, read("three"))
    assert opens(node, made) == record
    assert node.event("container_recorded", chain=chain(made)) is not None


def test_what_was_waited_for_is_kept_whichever_container_waited(node: Node, shelf: FaultyRegistry) -> None:
    made = image("waits")
    reference = shelf.add_image("record/waits", made)
    node.pull(reference)
    node.run(reference, read("three"))
    opens(node, made)
    node.run(reference, read("one", "three"))
    upper = made.layers[-1].digest
    key = next(one.layer for one in node.states() if one.digest == upper)
    path = f"{node.layergate.root}/records/waits/{key}.jsonl"

    def waited() -> list[str]:
        if not os.path.exists(path):
            return []
        with open(path, "rb") as record:
            return [opened.path for opened in parse_record(record.read(), name=path).files]

    eventually(lambda: len(waited()) == 2, "two waits to be written")
    assert waited() == ["srv/three", "srv/one"]


def test_a_running_container_is_recorded_when_its_time_is_over(node: Node, shelf: FaultyRegistry) -> None:
    made = image("running")
    reference = shelf.add_image("record/running", made)
    node.configure(f"{RECORDING}seconds = 2.0\n")
    node.pull(reference)
    with node.containerd.container(
        reference, ["/bin/sh", "-c", "cat /srv/one; sleep 1000"], snapshotter=node.name
    ) as container:
        record = opens(node, made)
        assert "srv/one" in [opened.path for opened in record.files]
        # And what comes later is not.
        container.execute(*read("three"))
        assert opens(node, made) == record
    node.configure(RECORDING)


def test_its_time_counts_from_the_first_open(node: Node, shelf: FaultyRegistry) -> None:
    made = image("late")
    node.configure(f"{RECORDING}seconds = 0.2\n")
    node.pull(shelf.add_image("record/late", made))
    with node.mounted(made) as root:
        time.sleep(1)  # what a slow runtime takes
        with open(f"{root}/srv/one", encoding="utf-8") as text:
            assert text.read() == "one late\n"
        assert [opened.path for opened in opens(node, made).files] == ["srv/one"]
    node.configure(RECORDING)


def test_unmounting_is_never_refused_for_the_sake_of_a_record(node: Node, shelf: FaultyRegistry) -> None:
    made = image("busy")
    reference = shelf.add_image("record/busy", made)
    node.pull(reference)
    loop = "i=0; while [ $i -lt 300 ]; do cat /srv/one >/srv/out; i=$((i+1)); done; cat /srv/two"
    assert node.run(reference, ["/bin/sh", "-c", loop]) == "two busy\n"
    record = opens(node, made)
    assert [opened.path for opened in record.files].count("srv/one") == 1
    assert not [mount for mount in mounts(node.containerd.directory) if "rootfs" in mount.target]


def test_nothing_is_recorded_where_it_is_off(node: Node, shelf: FaultyRegistry) -> None:
    made = image("off")
    reference = shelf.add_image("record/off", made)
    node.configure(ON_DEMAND)
    node.pull(reference)
    known = set(os.listdir(f"{node.layergate.root}/records"))
    node.run(reference, read("one"))
    node.configure(RECORDING)
    # A record of another image comes; of this one none has.
    other = image("on again")
    reference = shelf.add_image("record/on-again", other)
    node.pull(reference)
    node.run(reference, read("one"))
    opens(node, other)
    new = set(os.listdir(f"{node.layergate.root}/records")) - known
    assert new == {f"{chain(other).removeprefix('sha256:')}.jsonl"}


def test_records_are_listed_exported_and_cleared(node: Node, shelf: FaultyRegistry, directory: str) -> None:
    made = image("command")
    reference = shelf.add_image("record/command", made)
    node.pull(reference)
    node.run(reference, read("two"))
    opens(node, made)
    node.run(reference, read("one"))
    key = next(one.layer for one in node.states() if one.digest == made.layers[-1].digest)
    eventually(lambda: RecordStore(node.layergate.root).matching(key), "the waits")

    def record(*arguments: str) -> str:
        return node.layergate.command("record", *arguments, "--root", node.layergate.root)

    listed = json.loads(record("ls", "--json"))["records"]
    mine = [one for one in listed if reference in one["images"]]
    assert {one["kind"] for one in mine} == {"opens", "waits"}
    assert [one["chain"] for one in mine if one["kind"] == "opens"] == [chain(made)]
    assert reference in record("ls")

    def exported() -> list[str]:
        data = record("export", reference).encode()
        return [opened.path for opened in parse_record(data, name="export").files]

    # What was opened first, and then what another container had to wait for.
    eventually(lambda: exported()[-1] == "srv/one", "the last wait")
    assert exported().index("srv/two") < exported().index("srv/one")
    os.makedirs(directory)
    record("export", reference, "--output", f"{directory}/kept")
    with open(f"{directory}/kept", "rb") as kept:
        assert [opened.path for opened in parse_record(kept.read(), name="kept").files] == exported()

    assert record("clear", reference).endswith(" removed\n")
    with pytest.raises(CommandFailed, match="nothing is recorded of") as caught:
        record("export", reference)
    assert caught.value.returncode == 3
    node.run(reference, read("three"))
    assert "srv/three" in [opened.path for opened in opens(node, made).files]
