"""Layers made by hand for the odd cases: each image's whole tree, against containerd's overlayfs.

Three trees of each: as files come on demand, through the same mount when the layers are complete, and
through a new mount, which is native. In a second node nothing is opened before all is here.
"""

from __future__ import annotations

import random
import re
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Final

import pytest

from tests import oci, trees
from tests.estargz import (
    Entry,
    Layer,
    blockdev,
    build,
    chardev,
    dir,
    fifo,
    file,
    hardlink,
    landmark,
    no_landmark,
    opaque,
    symlink,
    whiteout,
)
from tests.faulty_registry import FaultyRegistry
from tests.integration.harness import mounts
from tests.integration.node import ON_DEMAND, Node, differences, eventually, running_node

pytestmark = pytest.mark.containerd

CAPABILITY: Final = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
"""security.capability: cap_net_bind_service, effective and permitted."""


def noise(size: int, seed: int = 1) -> bytes:
    """Bytes that do not compress."""
    return random.Random(seed).randbytes(size)


@dataclass(frozen=True, slots=True)
class Odd:
    """An image. Directories in `implied` have no entry in the uppermost layer that has them.

    `unpacked` are the numbers of the layers that would look different by themselves than on those below.
    """

    layers: Sequence[Layer]
    implied: Sequence[str] = ()
    unpacked: Sequence[int] = ()
    image: oci.Image = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "image", oci.image(self.layers))


def base(*more: Entry) -> Layer:
    """A bottom layer with something of each kind."""
    return build(
        [
            dir("./", mode=0o755),
            dir("a/", mode=0o750, uid=1, gid=2),
            file("a/x", b"x of the bottom"),
            file("a/y", b"y of the bottom", mode=0o600),
            dir("b/"),
            file("b/1", b"one"),
            file("b/2", b"two"),
            dir("b/deep/"),
            file("b/deep/3", b"three"),
            file("c", b"a file"),
            dir("d/"),
            file("d/inside", b"in a directory"),
            symlink("s", "d"),
            *more,
        ]
    )


LONG: Final = "/".join("n" * 250 for _ in range(12))
NAMES: Final = (
    "with blanks and  two",
    " at its ends ",
    "ünïcödé ☃ 日本語",
    "new\nline",
    "tab\tand\\backslash",
    "quotes\"'`$(id)",
    "-rf",
    "comma,colon:equals=",
    "percent%20",
    "..dots..",
    "\x01\x7f",
    "l" * 255,
    "é" * 127,
)

ODD: Final[dict[str, Odd]] = {
    "whiteouts": Odd(
        [
            base(),
            build([dir("a/"), whiteout("a/x"), whiteout("c"), whiteout("d"), file("e", b"new")]),
            build([dir("a/"), file("a/x", b"x again"), dir("c/"), file("c/1", b"below"), file("d", b"file")]),
        ]
    ),
    "whiteouts before and behind what they hide": Odd(
        [
            base(),
            build([dir("a/"), whiteout("a/x"), file("a/x", b"new x"), dir("b/"), whiteout("b/none")]),
        ]
    ),
    "opaque directories": Odd(
        [
            base(),
            build([dir("b/", mode=0o700), opaque("b"), file("b/4", b"four"), dir("n/"), opaque("n")]),
            build([dir("b/"), file("b/5", b"five"), dir("b/deep/"), opaque("b/deep")]),
        ]
    ),
    "an opaque root": Odd([base(), build([dir("./"), file(".wh..wh..opq"), file("only", b"this")])]),
    "only whiteouts": Odd(
        [base(), build([whiteout("a"), whiteout("c"), whiteout("s")])],
    ),
    "only whiteouts at the bottom": Odd(
        [build([dir("./"), whiteout("a")]), build([file("f", b"f")])], unpacked=[0]
    ),
    "whiteouts in the only layer": Odd(
        [build([dir("./"), dir("a/"), whiteout("a/x"), file("a/y", b"y")])], unpacked=[0]
    ),
    "an empty layer": Odd([base(), build([]), build([file("f", b"f")]), build([])]),
    "nothing but an empty layer": Odd([build([])]),
    "the same layer twice": Odd(
        [base(), build([whiteout("c"), file("f", b"1")]), base(), build([whiteout("c"), file("f", b"1")])]
    ),
    "kinds replaced": Odd(
        [
            base(symlink("to-file", "c"), fifo("pipe"), file("z", b"z")),
            build(
                [
                    dir("c/"),
                    file("c/below", b"a directory now"),
                    file("d", b"a file now"),
                    dir("s/"),
                    file("s/below", b"a directory now"),
                    file("to-file", b"a file itself"),
                    file("pipe", b"no pipe"),
                    symlink("b", "a"),
                    fifo("z"),
                ]
            ),
        ]
    ),
    "hard links": Odd(
        [
            build(
                [
                    dir("h/"),
                    file("h/1", b"shared", mode=0o640, uid=7, xattrs={"user.a": b"b"}),
                    dir("i/"),
                    hardlink("i/2", "h/1"),
                    hardlink("h/3", "i/2"),
                    file("h/empty"),
                    hardlink("h/empty too", "h/empty"),
                    fifo("h/pipe"),
                    hardlink("i/pipe", "h/pipe"),
                    symlink("h/link", "1"),
                    hardlink("i/link", "h/link"),
                    file("large", noise(200_000)),
                    hardlink("large too", "large"),
                ],
                chunk_size=1 << 16,
            ),
            build([dir("h/"), file("h/3", b"on its own")]),
        ]
    ),
    "symlinks": Odd(
        [
            build(
                [
                    dir("usr/"),
                    dir("usr/lib/"),
                    file("usr/lib/so", b"library"),
                    symlink("lib", "usr/lib", uid=3, gid=4, mtime=1_500_000_000),
                    symlink("absolute", "/usr/lib"),
                    symlink("dangling", "no/where"),
                    symlink("loop", "loop"),
                    symlink("long", "x/" * 1000),
                    symlink("up", "../../../../usr"),
                ]
            ),
            build([dir("usr/"), dir("usr/lib/"), file("usr/lib/more", b"more"), symlink("dangling", "usr")]),
        ]
    ),
    "a directory in place of a symlink below": Odd(
        [
            build([dir("usr/"), dir("usr/lib/"), file("usr/lib/so", b"library"), symlink("lib", "usr/lib")]),
            build([dir("lib/"), file("lib/other", b"not in usr")]),
        ]
    ),
    "modes": Odd(
        [
            build(
                [
                    dir("./", mode=0o711, uid=5, gid=6),
                    *(
                        file(f"m{mode:o}", b"m", mode=mode, uid=1000, gid=1001)
                        for mode in range(0, 0o10000, 0o111)
                    ),
                    *(file(f"e{mode:o}", mode=mode, uid=1000) for mode in (0o4755, 0o2755, 0o1644, 0o7777)),
                    dir("sticky/", mode=0o1777),
                    dir("setgid/", mode=0o2775, gid=50),
                    file("setgid/root", b"not of the group"),
                    dir("setgid/plain/"),
                    dir("none/", mode=0),
                    file("none/x", b"x", mode=0),
                    file("far", b"far", uid=0xFFFFFFFE, gid=0xFFFFFFFE, mtime=0),
                    file("old", b"old", mtime=1),
                    file("late", b"late", mtime=4_000_000_000),
                ]
            )
        ]
    ),
    "xattrs": Odd(
        [
            build(
                [
                    dir("x/", xattrs={"user.directory": b"value", "trusted.mine": b"1"}),
                    file("x/capable", b"#!", mode=0o755, xattrs={"security.capability": CAPABILITY}),
                    file("x/empty", xattrs={"user.on-empty": b"value"}),
                    file("x/binary", b"b", xattrs={"user.binary": bytes(range(1, 10)), "user.none": b""}),
                    file("x/trusted", b"t", xattrs={"trusted.mine": b"1", "user.mine": b"2"}),
                    file("x/long", b"l", xattrs={"user." + "n" * 250: b"v" * 900}),
                    file("x/suid", b"s", mode=0o6755, uid=9, xattrs={"user.a": b"b"}),
                ]
            ),
            build([dir("x/"), file("x/empty", b"now without")]),
        ]
    ),
    "xattrs that a Linux system has no place for": Odd(
        [build([dir("x/"), file("x/apple", b"a", xattrs={"com.apple.provenance": b"1", "user.a": b"b"})])]
    ),
    "devices": Odd(
        [
            build(
                [
                    dir("dev/"),
                    chardev("dev/null", 1, 3, mode=0o666),
                    chardev("dev/far", 300, 70000, gid=5),
                    blockdev("dev/loop", 7, 200, mode=0o660, gid=6),
                    fifo("dev/pipe", mode=0o622, uid=8),
                ]
            ),
            build([dir("dev/"), whiteout("dev/null"), fifo("dev/loop")]),
        ]
    ),
    "names": Odd(
        [
            build(
                [
                    dir("names/"),
                    *(file(f"names/{name}", f"named {name!r}".encode()) for name in NAMES),
                    dir("dirs/"),
                    *(dir(f"dirs/{name}/") for name in NAMES),
                    *(file(f"dirs/{name}/f", b"f") for name in NAMES),
                    *(symlink(f"dirs/{name}/s", name) for name in NAMES),
                ]
            ),
            build([dir("names/"), *(whiteout(f"names/{name}") for name in NAMES[:4])]),
        ]
    ),
    "a long path": Odd(
        [
            build(
                [
                    *(dir(LONG[: 251 * number - 1] + "/") for number in range(1, 13)),
                    file(LONG + "/f", b"deep"),
                ]
            )
        ]
    ),
    "implied parents": Odd(
        [build([file("p/q/r", b"alone"), file("p/s/t"), symlink("u/v", "w")])],
        implied=["p", "p/q", "p/s", "u"],
    ),
    "implied parents above others": Odd(
        [base(), build([file("a/z", b"in a directory without an entry"), whiteout("b/1")])],
        implied=["a", "b"],
        unpacked=[1],
    ),
    "implied parents above the same": Odd(
        [
            base(dir("e/"), dir("e/f/", mode=0o700)),
            build([dir("e/"), dir("e/f/"), file("e/f/1", b"1")]),
            build([file("b/6", b"six"), file("e/f/2", b"2"), whiteout("e/f/1"), file("q/new", b"new")]),
        ],
        implied=["b", "e", "e/f", "q"],
    ),
    "implied parents in place of others": Odd(
        [
            base(dir("e/", mode=0o700), file("e/1", b"1")),
            build([whiteout("e"), file("c/x", b"where a file was"), file("s/x", b"where a symlink was")]),
            build([file("e/2", b"where nothing is")]),
        ],
        implied=["c", "e", "s"],
        unpacked=[1],
    ),
    "chunks": Odd(
        [build([dir("big/"), file("big/f", noise(1_000_000)), file("small", b"s")], chunk_size=1 << 16)]
    ),
    "a chunk's edge": Odd(
        [
            build(
                [file("exact", noise(1 << 17)), file("one more", noise((1 << 17) + 1, 2))], chunk_size=1 << 16
            )
        ]
    ),
    "shared members": Odd(
        [
            build(
                [file(f"f{number}", noise(number * 100 + 1, number)) for number in range(100)]
                + [file("spread", noise(300_000))],
                chunk_size=1 << 16,
                min_chunk_size=50_000,
            )
        ]
    ),
    "a legacy footer": Odd([build([file("old", b"stargz")], legacy_footer=True)]),
    "without chunk digests": Odd([build([file("f", b"by its own digest")], omit_chunk_digests=True)]),
    "a landmark": Odd([build([file("first", noise(9000)), landmark(), file("then", noise(9000, 2))])]),
    "a landmark that says no": Odd([build([no_landmark(), file("f", b"f")])]),
    "names that begin with ./": Odd(
        [build([dir("d/"), file("d/f", b"f"), hardlink("h", "d/f")], prefix="./")]
    ),
    "names that begin with /": Odd(
        [base(), build([dir("d/"), file("d/f", b"f"), whiteout("c")], prefix="/")]
    ),
    "a name twice": Odd([build([file("f", b"first"), dir("d/", mode=0o700), file("f", b"last"), dir("d/")])]),
    "many layers": Odd(
        [
            build([dir("n/"), file("n/same", b"0"), file("bottom", b"b"), dir("o/"), file("o/0", b"0")]),
            *(
                build(
                    [
                        dir("n/"),
                        file("n/same", f"{number}".encode()),
                        file(f"n/{number}", f"of {number}".encode()),
                        dir("o/"),
                        opaque("o"),
                        file(f"o/{number}", b"alone"),
                    ]
                )
                for number in range(1, 127)
            ),
        ]
    ),
}


@pytest.fixture(scope="module")
def shelf() -> Iterator[FaultyRegistry]:
    """A registry with what tests put there."""
    with FaultyRegistry() as registry:
        yield registry


@pytest.fixture(scope="module")
def on_demand(file_system: str) -> Iterator[Node]:
    """A node where nothing streams until the configuration is changed."""
    with running_node(f"{file_system}/odd-1", config=ON_DEMAND) as node:
        yield node


@pytest.fixture(scope="module")
def streaming(file_system: str) -> Iterator[Node]:
    """A node that streams."""
    with running_node(f"{file_system}/odd-2") as node:
        yield node


@pytest.fixture(scope="module")
def ordinary() -> dict[str, dict[str, trees.Entry]]:
    """The trees as containerd's overlayfs has them, by the names of those images that were compared."""
    return {}


def lazy_part(root: str) -> bool:
    """Whether a mount stands on a lazy lower."""
    (mount,) = mounts(root)
    return "/root/lazy/" in mount.options


def pulled(node: Node, odd: Odd, reference: str) -> None:
    """Pull it, and see that as many layers were unpacked as have to be."""
    found = re.search(r"(\d+) unpacked", node.pull(reference))
    assert int(found[1] if found else 0) == len(odd.unpacked)


def is_complete(node: Node, odd: Odd) -> bool:
    """Whether every layer that was not unpacked is complete."""
    states = node.states_of(odd.image)
    return all(
        states[layer.digest] == "complete"
        for number, layer in enumerate(odd.layers)
        if number not in odd.unpacked
    )


def until_complete(node: Node, odd: Odd) -> None:
    eventually(lambda: is_complete(node, odd), "complete layers", patience=200)


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", ODD)
def test_tree_on_demand_and_after_completion(
    name: str, on_demand: Node, shelf: FaultyRegistry, ordinary: dict[str, dict[str, trees.Entry]]
) -> None:
    odd = ODD[name]
    reference = shelf.add_image("odd/demand", odd.image, tag=f"t{list(ODD).index(name)}")
    on_demand.configure(ON_DEMAND)
    pulled(on_demand, odd, reference)
    expected = ordinary[name] = on_demand.ordinary(odd.image, reference)
    native = is_complete(on_demand, odd)  # it has all its layers in common with others, or has none
    with on_demand.mounted(odd.image) as root:
        assert lazy_part(root) != native
        assert differences(trees.scan(root), expected, implied=odd.implied) == []
        on_demand.configure("")
        until_complete(on_demand, odd)
        assert differences(trees.scan(root), expected, implied=odd.implied) == []
    with on_demand.mounted(odd.image) as root:
        assert not lazy_part(root)
        assert differences(trees.scan(root), expected, implied=odd.implied) == []


@pytest.mark.parametrize("name", [name for name in ODD if name != "many layers"])
def test_tree_that_streamed(
    name: str, streaming: Node, shelf: FaultyRegistry, ordinary: dict[str, dict[str, trees.Entry]]
) -> None:
    odd = ODD[name]
    reference = shelf.add_image("odd/stream", odd.image, tag=f"t{list(ODD).index(name)}")
    pulled(streaming, odd, reference)
    until_complete(streaming, odd)
    expected = ordinary.get(name) or streaming.ordinary(odd.image, reference)
    with streaming.mounted(odd.image) as root:
        assert not lazy_part(root)
        assert differences(trees.scan(root), expected, implied=odd.implied) == []
