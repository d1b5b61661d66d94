"""Decisions of what is to go, from values alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapshotter.cache.plan import Limits, Plan, is_called, plan_clean, plan_limits
from snapshotter.cache.values import CachedLayer, Selection, User, UserKind
from tests.snapshotter.cached import cached_layer

SNAPSHOT = User(UserKind.SNAPSHOT, "k8s.io/1/web")
OLD = cached_layer("a", size=100, last_used=10, image="old:1")
YOUNG = cached_layer("b", size=200, last_used=90, image="young:1")
USED = cached_layer("c", size=400, last_used=5, used_by=[SNAPSHOT], image="used:1")
LAYERS = [YOUNG, USED, OLD]
NONE = Limits(max_size=None, min_free=0, keep_unused=None)


def keys(plan: Plan) -> list[str]:
    return [layer.layer[0] for layer in plan.remove]


def test_unused_goes_the_least_recently_used_first() -> None:
    plan = plan_clean(LAYERS, Selection(), now=100)
    assert keys(plan) == ["a", "b"]
    assert not plan.kept


def test_everything_names_what_is_in_use() -> None:
    plan = plan_clean(LAYERS, Selection(everything=True), now=100)
    assert keys(plan) == ["a", "b"]
    assert plan.kept == (USED,)


def test_an_image_names_its_layers() -> None:
    assert keys(plan_clean(LAYERS, Selection(images=["young:1"]), now=100)) == ["b"]
    used = plan_clean(LAYERS, Selection(images=["used:1"]), now=100)
    assert not used.remove
    assert used.kept == (USED,)


def test_layers_are_named_by_digest_by_its_beginning_or_by_key() -> None:
    for name in ("sha256:" + "a" * 64, "a" * 64, "a" * 12, "sha256:" + "a" * 6, "a" * 20):
        assert keys(plan_clean(LAYERS, Selection(layers=[name]), now=100)) == ["a"], name


def test_what_nothing_is_called_is_unknown() -> None:
    plan = plan_clean(LAYERS, Selection(layers=["a" * 12, "d" * 12, "aaaaa", "sha256:"]), now=100)
    assert keys(plan) == ["a"]
    assert plan.unknown == ("d" * 12, "aaaaa", "sha256:")
    assert plan_clean(LAYERS, Selection(images=["other:1"]), now=100).unknown == ("other:1",)


def test_a_damaged_layer_is_called_by_its_key_alone() -> None:
    damaged = CachedLayer(**{**{f: getattr(OLD, f) for f in OLD.__struct_fields__}, "digest": ""})
    assert is_called(damaged, "a" * 20)
    assert not is_called(damaged, "sha256:" + "a" * 64)


def test_older_than_spares_what_was_used_since() -> None:
    assert keys(plan_clean(LAYERS, Selection(older_than=90), now=100)) == ["a"]
    assert keys(plan_clean(LAYERS, Selection(older_than=90.1), now=100)) == []


def test_to_size_stops_as_soon_as_it_is_small_enough() -> None:
    assert keys(plan_clean(LAYERS, Selection(to_size=700), now=100)) == []
    assert keys(plan_clean(LAYERS, Selection(to_size=699), now=100)) == ["a"]
    assert keys(plan_clean(LAYERS, Selection(to_size=600), now=100)) == ["a"]
    assert keys(plan_clean(LAYERS, Selection(to_size=599), now=100)) == ["a", "b"]


def test_to_size_says_what_it_cannot_reach() -> None:
    plan = plan_clean(LAYERS, Selection(to_size=150), now=100)
    assert keys(plan) == ["a", "b"]
    assert plan.excess == 250


def test_older_than_and_to_size_narrow_together() -> None:
    plan = plan_clean(LAYERS, Selection(older_than=50, to_size=100), now=100)
    assert keys(plan) == ["a"]
    assert plan.excess == 500


def test_limits_let_everything_stay_that_they_allow() -> None:
    assert plan_limits(LAYERS, NONE, free=0, now=1e9) == Plan(())


def test_limits_drop_what_has_been_unused_for_long() -> None:
    limits = Limits(max_size=None, min_free=0, keep_unused=90)
    assert keys(plan_limits(LAYERS, limits, free=0, now=100)) == ["a"]
    assert keys(plan_limits(LAYERS, limits, free=0, now=180)) == ["a", "b"]


def test_limits_keep_the_size() -> None:
    limits = Limits(max_size=650, min_free=0, keep_unused=None)
    assert keys(plan_limits(LAYERS, limits, free=0, now=100)) == ["a"]
    plan = plan_limits(LAYERS, Limits(max_size=300, min_free=0, keep_unused=None), free=0, now=100)
    assert keys(plan) == ["a", "b"]
    assert plan.excess == 100


def test_limits_keep_space_free() -> None:
    limits = Limits(max_size=None, min_free=1000, keep_unused=None)
    assert keys(plan_limits(LAYERS, limits, free=1000, now=100)) == []
    assert keys(plan_limits(LAYERS, limits, free=999, now=100)) == ["a"]
    assert keys(plan_limits(LAYERS, limits, free=850, now=100)) == ["a", "b"]


def test_what_is_dropped_for_its_age_counts_for_the_other_limits() -> None:
    limits = Limits(max_size=600, min_free=0, keep_unused=90)
    assert keys(plan_limits(LAYERS, limits, free=0, now=100)) == ["a"]


layers = st.lists(
    st.builds(
        cached_layer,
        st.sampled_from("abcdefghij"),
        size=st.integers(0, 1000),
        last_used=st.floats(0, 1000),
        used_by=st.sampled_from([[], [SNAPSHOT]]),
        image=st.sampled_from(["", "one:1", "two:1"]),
    ),
    unique_by=lambda layer: layer.layer,
)
selections = st.builds(
    Selection,
    everything=st.booleans(),
    images=st.lists(st.sampled_from(["one:1", "two:1", "three:1"]), max_size=2),
    layers=st.lists(st.sampled_from(["a" * 20, "b" * 64, "c" * 12]), max_size=2),
    older_than=st.none() | st.floats(0, 1000),
    to_size=st.none() | st.integers(0, 5000),
)
limits = st.builds(
    Limits,
    max_size=st.none() | st.integers(0, 5000),
    min_free=st.integers(0, 5000),
    keep_unused=st.none() | st.floats(0, 1000),
)


@given(layers, selections)
def test_clean_never_removes_what_is_in_use(some: list[CachedLayer], selection: Selection) -> None:
    plan = plan_clean(some, selection, now=1000)
    assert not any(layer.used_by for layer in plan.remove)
    assert all(layer.used_by for layer in plan.kept)
    assert len({layer.layer for layer in plan.remove}) == len(plan.remove)


@given(layers, limits, st.integers(0, 5000))
def test_limits_never_remove_what_is_in_use_and_say_what_is_missing(
    some: list[CachedLayer], wanted: Limits, free: int
) -> None:
    plan = plan_limits(some, wanted, free=free, now=1000)
    assert not any(layer.used_by for layer in plan.remove)
    removed = sum(layer.bytes for layer in plan.remove)
    left = sum(layer.bytes for layer in some) - removed
    if not plan.excess:
        assert wanted.max_size is None or left <= wanted.max_size
        assert free + removed >= wanted.min_free
    else:
        assert {layer.layer for layer in some if not layer.used_by} == {layer.layer for layer in plan.remove}


@pytest.mark.parametrize("name", ["aaaaa", "", "sha256:", "sha256:aaaaa"])
def test_too_short_a_beginning_is_no_name(name: str) -> None:
    assert not is_called(OLD, name)
