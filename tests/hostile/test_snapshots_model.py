"""Any sequence of calls to the snapshots service, against a model that has the rules on half a page.

The server is a real one on a real socket, and is stopped and started again in between. Whatever is asked of
it, it answers with the status that the model foresees, and is in the state that the model has.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path

import grpc
import hypothesis
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule, run_state_machine_as_test

from snapshotter.lowers import LazyLink, Link, Lowerdirs, NoLowers
from snapshotter.proto import snapshots_pb2 as pb
from tests.snapshotter.serving import serving
from tests.snapshotter.snapshots_client import SnapshotsClient, failure

REF = "containerd.io/snapshot.ref"
SERVICE = "/containerd.services.snapshots.v1.Snapshots/"
CALLS = ("Prepare", "View", "Mounts", "Commit", "Remove", "Stat", "Update", "Usage", "Cleanup")
CODES = grpc.StatusCode

plain_names = st.sampled_from(["a", "b", "c", "d"])
odd_names = st.sampled_from(["", "../../etc", "x\n\0\x1b", "\N{SNOWMAN}" * 200, "x" * 5000, "labels.'\"%"])
names = plain_names | plain_names | odd_names
labels = st.dictionaries(
    st.sampled_from(["one", "two.three", "", "x" * 300, "containerd.io/gc.root"]),
    st.sampled_from(["", "1", "2", "'; DROP TABLE label", "\N{SNOWMAN}"]),
    max_size=3,
)
masks = st.lists(
    st.sampled_from(["labels", "labels.one", "labels.two.three", "labels.", "parent", ""]), max_size=2
)
refs = st.sampled_from(["", "", "a", "sha256:1", "sha256:2"])


class Lazy(NoLowers):
    """A lazy part that opens each layer with a label `layer`."""

    async def open_layer(self, labels: Mapping[str, str], below: Sequence[Link]) -> str | None:
        return labels.get("layer") or None

    async def lowerdirs(self, key: str, chain: Sequence[Link]) -> Lowerdirs:
        if any(isinstance(link, LazyLink) for link in chain):
            return Lowerdirs(("/nowhere",), lazy=True)
        return await super().lowerdirs(key, chain)


@dataclass(frozen=True)
class Known:
    """A snapshot as it should be."""

    kind: str
    parent: str = ""
    labels: Mapping[str, str] = field(default_factory=dict)
    lazy: bool = False


def kept(labels: Mapping[str, str]) -> dict[str, str]:
    """Labels without a value are none."""
    return {key: value for key, value in labels.items() if value}


class Snapshots(RuleBasedStateMachine):
    """The rules, and what they make of each call."""

    def __init__(self) -> None:
        super().__init__()
        self.known: dict[str, Known] = {}
        self.stack = ExitStack()
        directory = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="lg-"))
        self.root = Path(directory) / "root"
        self.root.mkdir()
        self.socket = f"{directory}/s"
        self.start()

    def start(self) -> None:
        self.running = ExitStack()
        self.running.enter_context(serving(self.root, self.socket, Lazy()))
        self.client = self.running.enter_context(SnapshotsClient(self.socket))

    def teardown(self) -> None:
        self.running.close()
        self.stack.close()

    def expect(self, code: grpc.StatusCode | None, call: Callable[[], object]) -> None:
        if code is None:
            call()
        else:
            assert failure(call)[0] is code

    def parent_fault(self, parent: str) -> grpc.StatusCode | None:
        if not parent:
            return None
        if parent not in self.known:
            return CODES.NOT_FOUND
        return None if self.known[parent].kind == "COMMITTED" else CODES.INVALID_ARGUMENT

    def create_fault(self, key: str, parent: str) -> grpc.StatusCode | None:
        if not key:
            return CODES.INVALID_ARGUMENT
        return CODES.ALREADY_EXISTS if key in self.known else self.parent_fault(parent)

    @rule(key=names, parent=st.just("") | names, labels=labels, ref=refs, lazy=st.booleans())
    def prepare(self, key: str, parent: str, labels: dict[str, str], ref: str, lazy: bool) -> None:
        asked = labels | ({REF: ref} if ref else {}) | ({"layer": "l" * 20} if lazy else {})
        fault = self.create_fault(key, parent)
        if ref and key and self.find(ref, parent):
            fault = CODES.ALREADY_EXISTS
        elif ref and lazy and fault is None:
            self.expect(CODES.ALREADY_EXISTS, lambda: self.client.prepare(key, parent, asked))
            # As containerd looks it up; the name is the snapshotter's to choose.
            fresh = {one.name for one in self.client.walk(f'labels."{REF}"=={ref}')} - self.known.keys()
            assert len(fresh) == 1
            self.known[fresh.pop()] = Known("COMMITTED", parent, kept(asked), lazy=True)
            return
        self.expect(fault, lambda: self.client.prepare(key, parent, asked))
        if fault is None:
            self.known[key] = Known("ACTIVE", parent, kept(asked))

    def find(self, ref: str, parent: str) -> bool:
        return any(
            one.kind == "COMMITTED" and one.parent == parent and one.labels.get(REF) == ref
            for one in self.known.values()
        )

    @rule(key=names, parent=st.just("") | names, labels=labels)
    def view(self, key: str, parent: str, labels: dict[str, str]) -> None:
        fault = self.create_fault(key, parent)
        self.expect(fault, lambda: self.client.view(key, parent, labels))
        if fault is None:
            self.known[key] = Known("VIEW", parent, kept(labels))

    @rule(name=names, key=names, labels=labels, parent=st.just("") | names)
    def commit(self, name: str, key: str, labels: dict[str, str], parent: str) -> None:
        fault = None
        if not name:
            fault = CODES.INVALID_ARGUMENT
        elif key not in self.known:
            fault = CODES.NOT_FOUND
        elif name in self.known:
            fault = CODES.ALREADY_EXISTS
        elif self.known[key].kind != "ACTIVE":
            fault = CODES.FAILED_PRECONDITION
        elif parent not in ("", self.known[key].parent):
            fault = CODES.INVALID_ARGUMENT
        self.expect(fault, lambda: self.client.commit(name, key, labels, parent))
        if fault is None:
            self.known[name] = replace(self.known.pop(key), kind="COMMITTED", labels=kept(labels))

    @rule(key=names)
    def remove(self, key: str) -> None:
        fault = None
        if key not in self.known:
            fault = CODES.NOT_FOUND
        elif any(one.parent == key for one in self.known.values()):
            fault = CODES.FAILED_PRECONDITION
        self.expect(fault, lambda: self.client.remove(key))
        if fault is None:
            del self.known[key]

    @rule(key=names)
    def mounts(self, key: str) -> None:
        fault = None
        if key not in self.known:
            fault = CODES.NOT_FOUND
        elif self.known[key].kind == "COMMITTED":
            fault = CODES.FAILED_PRECONDITION
        self.expect(fault, lambda: self.client.mounts(key))
        if fault is None:
            self.stay_below_root(key, self.client.mounts(key))

    def stay_below_root(self, key: str, mounts: list[pb.Mount]) -> None:
        """No name that anybody chose is part of a path."""
        for mount in mounts:
            text = " ".join([mount.source, *mount.options])
            assert "etc" not in text.removeprefix(str(self.root))
            assert "metacopy" not in text
            writable = "upperdir=" in text or "rw" in mount.options
            assert writable == (self.known[key].kind == "ACTIVE")

    @rule(name=names, labels=labels, paths=masks)
    def update(self, name: str, labels: dict[str, str], paths: list[str]) -> None:
        fault = None
        if name not in self.known:
            fault = CODES.NOT_FOUND
        elif not all(path == "labels" or path.startswith("labels.") for path in paths):
            fault = CODES.INVALID_ARGUMENT
        self.expect(fault, lambda: self.client.update(name, labels, *paths))
        if fault is None:
            merged = dict(self.known[name].labels) if paths else labels
            for path in paths:
                if path == "labels":
                    merged = dict(labels)
                else:
                    key = path.removeprefix("labels.")
                    merged = {**merged, key: labels.get(key, "")}
            self.known[name] = replace(self.known[name], labels=kept(merged))

    @rule(key=names)
    def stat_and_usage(self, key: str) -> None:
        fault = None if key in self.known else CODES.NOT_FOUND
        self.expect(fault, lambda: self.client.stat(key))
        self.expect(fault, lambda: self.client.usage(key))

    @rule(key=plain_names, value=st.sampled_from(["1", "2"]))
    def list_some(self, key: str, value: str) -> None:
        active = {name for name, one in self.known.items() if one.kind == "ACTIVE"}
        assert {info.name for info in self.client.walk("kind==active")} == active
        found = {info.name for info in self.client.walk(f"labels.one=={value}", f"name=={key}")}
        assert found == {
            name for name, one in self.known.items() if one.labels.get("one") == value or name == key
        }

    @rule()
    def clean_up(self) -> None:
        self.client.cleanup()
        ordinary = [one for one in self.known.values() if not one.lazy]
        assert len(os.listdir(self.root / "snapshots")) == len(ordinary)

    @rule()
    def start_again(self) -> None:
        self.running.close()
        self.start()

    @invariant()
    def everything_is_known(self) -> None:
        found = {info.name: Known(info.kind, info.parent, info.labels) for info in self.client.walk()}
        assert found == {name: replace(one, lazy=False) for name, one in self.known.items()}


def test_any_sequence_of_calls_goes_as_the_model_says() -> None:
    run_state_machine_as_test(
        Snapshots,
        settings=hypothesis.settings(
            deadline=None,
            max_examples=25,
            stateful_step_count=30,
            suppress_health_check=list(hypothesis.HealthCheck),
        ),
    )


@pytest.fixture
def snapshots_socket(tmp_path: Path) -> Iterator[str]:
    with (
        tempfile.TemporaryDirectory(prefix="lg-") as directory,
        serving(tmp_path, f"{directory}/s", Lazy()),
    ):
        yield f"{directory}/s"


def test_any_bytes_for_a_request_are_answered(snapshots_socket: str) -> None:
    statuses: set[grpc.StatusCode] = set()

    @given(call=st.sampled_from(CALLS), body=st.binary(max_size=60))
    @hypothesis.settings(max_examples=200)
    def send(call: str, body: bytes) -> None:
        method = channel.unary_unary(SERVICE + call, request_serializer=None, response_deserializer=None)
        statuses.add(method.future(body, timeout=30).code())  # which waits for the answer

    with grpc.insecure_channel(f"unix:{snapshots_socket}") as channel:
        send()
    # UNKNOWN is gRPC's own word for bytes that are no message.
    assert statuses <= {CODES.OK, CODES.UNKNOWN, CODES.NOT_FOUND, CODES.INVALID_ARGUMENT}
    with SnapshotsClient(snapshots_socket) as client:
        client.prepare("sound")
        assert client.stat("sound").kind == "ACTIVE"
