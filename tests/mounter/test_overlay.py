"""Option strings."""

from __future__ import annotations

from mounter.overlay import escape_lower, escape_path, join_lower, option_string


def test_what_steers_a_string_is_escaped() -> None:
    assert escape_lower("a:b,c\\d") == "a\\:b\\,c\\\\d"


def test_a_colon_is_special_among_lower_directories_only() -> None:
    assert escape_path("a:b,c\\d") == "a:b\\,c\\\\d"


def test_data_only_layers_stand_behind_two_colons_each() -> None:
    assert join_lower(["/m1", "/m2"], ["/plain", "/ga:te"]) == "/m1:/m2::/plain::/ga\\:te"


def test_without_data_only_layers_it_is_an_ordinary_list() -> None:
    assert join_lower(["/a", "/b"]) == "/a:/b"


def test_options_follow_the_layers_and_flags_have_no_value() -> None:
    text = option_string(["/a"], ["/d"], {"metacopy": "on", "userxattr": None, "upperdir": "/u,v"})
    assert text == "lowerdir=/a::/d,metacopy=on,userxattr,upperdir=/u\\,v"
