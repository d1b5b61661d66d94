"""Whatever a registry, an image's author or a configuration file has to say: a value, or an error of ours."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import anyio
import httpx
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from fetcher.auth import parse_challenges
from fetcher.credentials import Credential, CredentialStore
from fetcher.errors import FormatError, InvalidReference, RegistryError
from fetcher.logs import configure_logs, get_logger
from fetcher.manifest import (
    Platform,
    choose_manifest,
    document_type,
    parse_config_platform,
    parse_diff_ids,
    parse_index,
    parse_manifest,
)
from fetcher.ranges import (
    ContentRange,
    parse_content_range,
    parse_length,
    parse_unsatisfied_range,
    range_header,
)
from fetcher.reference import Reference, parse_digest, parse_reference
from fetcher.registry import RegistryClient
from fetcher.retries import parse_retry_after
from fetcher.settings import RegistrySettings
from snapshotter.config import Config, load_config
from snapshotter.containerd.labels import LABEL_LIMIT, snapshot_labels
from snapshotter.errors import ConfigError, InvalidFilter
from snapshotter.filters import parse_filters
from snapshotter.remote import RemoteLayer, remote_layer
from tests.fetcher.conftest import reply

DIGEST = "sha256:" + "0" * 64
FILES = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
NESTED = "[" * 100_000
MANY_DIGITS = "1" * 5000

digits = st.from_regex(r"[0-9]{1,30}", fullmatch=True)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=10), inner, max_size=3),
    max_leaves=8,
)


class TestRanges:
    @given(start=st.integers(0, 10**17), length=st.integers(1, 10**17), more=st.integers(0, 10**17))
    def test_what_was_asked_for_is_what_is_understood(self, start: int, length: int, more: int) -> None:
        asked = range_header(start, start + length).replace("=", " ")
        total = start + length + more
        assert parse_content_range(f"{asked}/{total}") == ContentRange(start, start + length, total)
        assert parse_content_range(f"{asked}/*") == ContentRange(start, start + length, None)
        assert parse_unsatisfied_range(f"bytes */{total}") == total
        assert parse_length(str(total)) == total

    @given(st.text(max_size=40) | st.builds("bytes {}-{}/{}".format, digits, digits, digits | st.just("*")))
    @example("bytes 5-4/10")
    @example("bytes 0-9/5")
    @example("bytes -1-5/10")
    @example(f"bytes 0-{MANY_DIGITS}/*")
    @example("bytes \N{SUPERSCRIPT TWO}-5/10")
    def test_any_header_is_a_sound_range_or_none(self, text: str) -> None:
        found = parse_content_range(text)
        if found is not None:
            assert 0 <= found.start < found.end <= 10**18
            assert found.total is None or found.end <= found.total

    @given(st.text(max_size=30) | digits)
    @example("\N{SUPERSCRIPT TWO}")
    @example("-1")
    @example(MANY_DIGITS)
    def test_any_length_is_a_number_or_none(self, text: str) -> None:
        for parse in (parse_length, parse_unsatisfied_range):
            found = parse(text)
            assert found is None or 0 <= found < 10**18

    @given(
        st.text(max_size=40)
        | st.from_regex(r"[a-zA-Z]{3}, [0-9]{1,3} Jan [0-9]{1,12} [0-9]{1,9}:[0-9]{1,4} ?[-+0-9]{0,9}")
    )
    @example("Mon, 01 Jan 3000000000 00:00:00 GMT")
    @example(MANY_DIGITS)
    def test_any_retry_after_is_seconds_or_none(self, text: str) -> None:
        found = parse_retry_after(text)
        assert found is None or found >= 0


class TestAuthentication:
    @given(st.lists(st.text(max_size=60), max_size=3))
    @example(['Bearer realm="' + "\\" * 5000])
    @example(["Bearer " + 'a="b",' * 1000 + "," * 5000])
    def test_any_challenge_is_parsed(self, headers: list[str]) -> None:
        for challenge in parse_challenges(headers):
            assert challenge.scheme == challenge.scheme.lower()

    @pytest.mark.anyio
    @pytest.mark.parametrize(
        "body",
        [
            b"",
            b"\xff",
            b'{"token": "\xff"}',
            b'{"other": ' + NESTED.encode(),
            b'{"token": ""}',
            b'{"token": "a\\nSet-Cookie: b"}',
            b'{"token": "\\ud800"}',
            b'{"token": 1}',
            b'{"token": "t", "expires_in": 1e999}',
            b'{"token": "t", "expires_in": "soon"}',
            b'{"token": "t"} and more',
        ],
        ids=lambda body: repr(body[:24]),
    )
    async def test_what_is_no_token_is_an_error_of_the_registrys(self, tmp_path: Path, body: bytes) -> None:
        def answer(request: httpx.Request) -> httpx.Response:
            if request.url.path == "/token":
                return reply(200, body)
            return reply(401, www_authenticate='Bearer realm="https://good.io/token"')

        store = CredentialStore(str(tmp_path / "config.json"))
        transport = httpx.MockTransport(answer)
        async with RegistryClient(RegistrySettings(), store, transport=transport) as client:
            with pytest.raises(RegistryError, match=r"good\.io"):
                await client.document(parse_reference("good.io/app"))

    @FILES
    @given(
        st.binary(max_size=60)
        | json_values.map(lambda value: json.dumps(value).encode())
        | st.fixed_dictionaries(
            {
                "auths": st.dictionaries(
                    st.sampled_from(["good.io", "https://good.io/v1/"]),
                    st.fixed_dictionaries({}, optional={"auth": st.text(), "username": st.text()}),
                )
            }
        ).map(lambda value: json.dumps(value).encode())
    )
    @example(b'{"auths": {"good.io": {"auth": "\xc3\xa9"}}}')
    @example(b'{"auths": {"good.io": {"auth": "\xff"}}}')
    @example(b'{"other": ' + NESTED.encode())
    def test_any_docker_config_gives_a_credential_or_none(self, tmp_path: Path, content: bytes) -> None:
        path = tmp_path / "config.json"
        path.write_bytes(content)

        async def lookup() -> Credential | None:
            return await CredentialStore(str(path)).lookup("good.io")

        found = anyio.run(lookup)
        assert found is None or found.username


class TestReferences:
    @given(st.text(alphabet="aA0.-_/:@[]\N{LATIN SMALL LETTER E WITH ACUTE}\n\x00 sha256", max_size=60))
    @example("a/../b")
    @example("good.io/" + "../" * 9 + "etc")
    @example("good.io:99999/a")
    @example("good.io@sha256:" + "0" * 64)
    @example("user:secret@good.io/a")
    def test_a_reference_can_name_nothing_but_a_repository(self, text: str) -> None:
        try:
            found = parse_reference(text)
        except InvalidReference:
            return
        assert parse_reference(str(found)) == found
        assert ".." not in found.repository.split("/")
        assert re.fullmatch(r"[a-z0-9._/-]+", found.repository)
        url = httpx.URL(RegistrySettings().endpoint(found.host)).join(f"/v2/{found.repository}/blobs/x")
        assert url.path == f"/v2/{found.repository}/blobs/x"
        assert not url.userinfo


class TestManifests:
    @given(st.binary(max_size=80) | json_values.map(lambda value: json.dumps(value).encode()))
    @example(b'{"layers": ' + NESTED.encode())
    @example(b'{"config": {"digest": "%s", "size": -1}, "layers": []}' % DIGEST.encode())
    @example(b'{"config": {"digest": "../../etc", "size": 1}, "layers": []}')
    @example(b'{"config": {"digest": "%s", "size": 1e400}, "layers": []}' % DIGEST.encode())
    def test_any_document_is_parsed_or_a_format_error(self, data: bytes) -> None:
        parsers: list[Callable[[bytes], object]] = [
            parse_manifest,
            parse_index,
            parse_config_platform,
            parse_diff_ids,
            lambda data: document_type(data, ""),
        ]
        for parse in parsers:
            try:
                parse(data)
            except FormatError:
                continue

    @given(
        variant=st.text(max_size=8) | digits.map("v{}".format),
        architecture=st.sampled_from(["arm", "amd64", "x"]),
    )
    @example(variant="v" + MANY_DIGITS, architecture="amd64")
    @example(variant="v\N{SUPERSCRIPT TWO}", architecture="arm")
    def test_any_platform_of_an_index_is_chosen_or_not(self, variant: str, architecture: str) -> None:
        platform = {"os": "linux", "architecture": architecture, "variant": variant}
        entry = {
            "digest": DIGEST,
            "size": 1,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "platform": platform,
        }
        index = json.dumps({"manifests": [entry]}).encode()
        found = choose_manifest(parse_index(index), Platform("linux", "amd64"))
        assert found is None or architecture == "amd64"


_NAMES = st.sampled_from(
    [
        "containerd.io/snapshot/cri.image-ref",
        "containerd.io/snapshot/cri.layer-digest",
        "containerd.io/snapshot/cri.manifest-digest",
        "containerd.io/snapshot/remote/stargz.reference",
        "containerd.io/snapshot/remote/stargz.digest",
        "containerd.io/snapshot/stargz/toc.digest",
        "containerd.io/snapshot.ref",
        "containerd.io/snapshot/anything",
    ]
)
_VALUES = st.text(max_size=20) | st.sampled_from([DIGEST, "good.io/a", "../../etc", "file:///etc/passwd"])


class TestLabels:
    @given(st.dictionaries(_NAMES, _VALUES))
    def test_labels_describe_a_layer_by_valid_words_alone(self, labels: dict[str, str]) -> None:
        try:
            found = remote_layer(labels)
        except InvalidReference:
            return
        if found is not None:
            assert isinstance(parse_reference(found.reference), Reference)
            for digest in (found.digest, found.toc_digest, found.manifest_digest):
                assert digest is None or parse_digest(digest) == digest

    @given(st.dictionaries(_NAMES, _VALUES | st.just("x" * 5000)))
    def test_an_author_can_steer_nothing_by_annotations(self, annotations: dict[str, str]) -> None:
        labels = snapshot_labels(
            chain_id=DIGEST,
            reference="good.io/a:latest",
            manifest_digest=DIGEST,
            layers=[DIGEST],
            annotations=annotations,
        )
        assert all(len(key.encode()) + len(value.encode()) <= LABEL_LIMIT for key, value in labels.items())
        assert labels["containerd.io/snapshot.ref"] == DIGEST
        try:
            found = remote_layer(labels)
        except InvalidReference:  # the digest of a TOC that is none
            return
        assert isinstance(found, RemoteLayer)
        assert (found.reference, found.digest, found.manifest_digest) == ("good.io/a:latest", DIGEST, DIGEST)


class TestConfiguration:
    @FILES
    @given(
        st.binary(max_size=60)
        | st.text(max_size=60).map(str.encode)
        | st.builds(
            "[{}]\n{} = {}\n".format,
            st.sampled_from(["lazy", "stream", "cache", "mounter", "record", "registry.'a b'", "log"]),
            st.sampled_from(
                ["enabled", "max_size", "min_free", "seconds", "level", "plain_http", "bytes_per_second"]
            ),
            st.sampled_from(["true", "-1", "nan", "inf", "1e999", "'1GB'", "'10%'", "''", "[]", "{}"]),
        ).map(str.encode)
    )
    @example(b"mounter = 1")
    @example(b"registry = 1")
    @example(b"a = " + NESTED.encode())
    @example(b"a = " + MANY_DIGITS.encode())
    @example(b"[cache]\nmax_size = '" + b"9" * 400 + b"GB'")
    @example(b"[cache]\nkeep_unused = '" + b"9" * 400 + b"d'")
    @example(b"[lazy]\nopen_timeout_seconds = nan")
    @example(b'a = "\xff"')
    def test_any_file_is_a_configuration_or_an_error_that_names_it(
        self, tmp_path: Path, content: bytes
    ) -> None:
        path = tmp_path / "config.toml"
        path.write_bytes(content)
        found: Config | str
        try:
            found = load_config(str(path))
        except ConfigError as error:
            found = str(error)
        assert isinstance(found, Config) or str(path) in found


class TestFilters:
    @given(
        st.text(max_size=60) | st.builds('labels."{}"~={}'.format, st.text(max_size=9), st.text(max_size=30))
    )
    @example("name~=/a{99999999999}/")
    @example("name~=/a{" + MANY_DIGITS + "}/")
    @example("name~=/" + "(" * 5000 + "/")
    @example('name=="' + "\\" * 99)
    @example("name" + ".a" * 5000)
    @pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
    def test_any_filter_matches_or_is_invalid(self, text: str) -> None:
        try:
            found = parse_filters([text])
        except InvalidFilter:
            return
        assert found.matches(lambda path: "value") in (True, False)


class _Lines:
    """What a log writes."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        """Nothing is held back."""


class TestLogs:
    @given(st.text(max_size=30))
    @example("etc/passwd\nlevel=error event=forged")
    @example("\x1b]0;title\x07\x1b[2J")
    @example("\x9b2J\N{LINE SEPARATOR}next")
    @example("\udcff")
    def test_a_name_makes_no_line_of_its_own_and_speaks_to_no_terminal(self, name: str) -> None:
        lines = _Lines()
        configure_logs("info", stream=lines)
        try:
            get_logger("layergate.test").info("named", name=name)
        finally:
            configure_logs("info")
        assert len(lines.text.splitlines()) == 1
        assert not re.search(r"[\x00-\x1f\x7f-\x9f]", lines.text.removesuffix("\n"))
