"""`scripts/bench --peer`: that a peer is started, pulled into and waited for as its documentation says.

A stand-in takes the peer's options and serves with layergate; whether a stargz-snapshotter does with them
what it says it does is seen only where there is one.
"""

from __future__ import annotations

import json
import os
import sys
import threading

import pytest

from scripts.benchmark.peer import configuration, peer
from scripts.benchmark.registry import FarRegistry, PushedImage
from tests import estargz, oci
from tests.estargz import build, landmark
from tests.integration.harness import Registry, call
from tests.integration.node import program_files

pytestmark = [pytest.mark.root, pytest.mark.containerd]

STAND_IN = """
import os, sys
from snapshotter.entry import main
options = dict(zip(sys.argv[1::2], sys.argv[2::2]))
assert set(options) == {"--address", "--config", "--root", "--log-level"}, options
said = os.path.join(os.path.dirname(options["--root"]), "said.toml")
os.rename(options["--config"], said)
sys.argv = ["layergate", "serve", "--root", options["--root"], "--address", options["--address"]]
main()
"""


def test_a_peer_is_pulled_into_and_waited_for(directory: str) -> None:
    image = oci.image(
        [build([*program_files("sh"), landmark()]), build([estargz.file("greeting", b"hello\n")])],
        command=["/bin/sh", "-c", "read text < /greeting; echo $text"],
    )
    with (
        Registry(f"{directory}/registry") as registry,
        peer(directory, [sys.executable, "-c", STAND_IN]) as engine,
    ):
        reference = oci.push(registry.host, "peer", image)
        pushed = PushedImage(reference, tuple(layer.digest for layer in image.layers), 0, "")
        with engine.group.entered():
            call(engine.pull_command(reference))
        assert engine.containerd.run(reference, snapshotter=engine.snapshotter) == "hello\n"
        with open(f"{directory}/peer/said.toml", encoding="utf-8") as said:
            assert said.read() == configuration(FarRegistry.host)
        assert engine.group.cpu_seconds > 0
        assert engine.memory().processes > 0

        waiting = threading.Thread(target=engine.wait_until_complete, args=[pushed])
        waiting.start()
        for number, layer in enumerate(image.layers):
            assert waiting.is_alive()
            state = f"{engine.root}/snapshotter/snapshots/{number}/fs/.stargz-snapshotter"
            os.makedirs(state)
            with open(f"{state}/{layer.digest}.json", "w", encoding="ascii") as file:
                json.dump({"digest": layer.digest, "size": 9, "fetchedSize": 9, "fetchedPercent": 100}, file)
        waiting.join(10)
        assert not waiting.is_alive()
        assert engine.disk().unpacked > 0
