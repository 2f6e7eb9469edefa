"""Where the mail of folders elsewhere goes."""

import time
from collections.abc import Sequence

import pytest

from mail.connectors.mailbox_mapping import MappingRules, map_mailboxes, remote_path
from mail.connectors.remote_server import ListedMailbox
from mail.mailboxes import paths
from mail.sieve.execution.regex_groups import compile_regex
from mail.text.bounded_regex import BoundedRegex
from models.mailboxes.tables import SpecialUse

HERE = {
    SpecialUse.SENT: "Gesendet",
    SpecialUse.TRASH: "Papierkorb",
    SpecialUse.DRAFTS: "Entwürfe",
    SpecialUse.JUNK: "Spam",
}


def listed(*levels: str, use: str | None = None) -> ListedMailbox:
    return ListedMailbox("/".join(levels).encode("utf-8", "replace"), list(levels), use)


def path(*levels: str, use: str | None = None, how: MappingRules | None = None) -> str:
    (found,) = map_mailboxes([listed(*levels, use=use)], how or MappingRules(), HERE)
    assert paths.validate_path(found.local_path) == found.local_path
    return found.local_path


def names(how: MappingRules, *there: str) -> list[str]:
    return [
        remote_path(one.remote_mailbox)
        for one in map_mailboxes([listed(*one.split("/")) for one in there], how, {})
    ]


def rewrites(*pairs: tuple[str, str]) -> MappingRules:
    return MappingRules(
        rewrites=[(compile_regex(pattern, ignore_case=True), new) for pattern, new in pairs]
    )


# ---------------------------------------------------------------- roles


@pytest.mark.parametrize(
    ("levels", "use", "expected"),
    [
        (["Whatever"], "\\sent", "Gesendet"),
        (["a", "b", "c"], "\\trash", "Papierkorb"),
        (["Sent Items"], None, "Gesendet"),
        (["SENT"], None, "Gesendet"),
        (["INBOX", "Sent"], None, "Gesendet"),
        (["inbox", "Drafts"], None, "Entwürfe"),
        (["Deleted Messages"], None, "Papierkorb"),
        (["Junk E-mail"], None, "Spam"),
        (["Entwürfe"], None, "Entwürfe"),
        (["Entwu\u0308rfe"], None, "Entwürfe"),
        (["المرسلة"], None, "Gesendet"),
        (["Customers", "Sent"], None, "Customers/Sent"),
        (["INBOX", "Customers", "Sent"], None, "INBOX/Customers/Sent"),
        (["Archive"], None, "Archive"),
        (["INBOX"], None, "INBOX"),
        (["Inbox", "a"], None, "INBOX/a"),
        (["x", "inbox"], None, "x/inbox"),
    ],
)
def test_roles(levels: list[str], use: str | None, expected: str) -> None:
    assert path(*levels, use=use) == expected


def test_no_roles() -> None:
    assert path("Sent", use="\\sent", how=MappingRules(maps_special_use=False)) == "Sent"
    assert path("Sent", use="\\sent", how=MappingRules(parent_path="Old")) == "Old/Sent"


@pytest.mark.parametrize("use", ["\\all", "\\flagged"])
def test_what_is_in_others_too_is_left_out(use: str) -> None:
    assert map_mailboxes([listed("[Gmail]", "All", use=use)], MappingRules(), HERE) == []


def test_the_inbox_comes_first_and_nothing_passes_for_it() -> None:
    assert names(MappingRules(), "a", "b", "Inbox", "\u0131nbox") == [
        "Inbox",
        "a",
        "b",
        "\u0131nbox",
    ]
    assert path("\u0131nbox") != "INBOX"


def test_two_that_go_to_one() -> None:
    there = [listed("Sent"), listed("Gesendet"), listed("x", use="\\sent"), listed("a/b"),
             listed("a_b")]  # fmt: skip
    found = [one.local_path for one in map_mailboxes(there, MappingRules(), HERE)]
    assert found == ["Gesendet"] * 3 + ["a_b"] * 2


# ---------------------------------------------------------------- which


def test_exclude_and_include() -> None:
    there = ("INBOX", "a/Old", "b/Older", "c")
    assert names(MappingRules(exclude=BoundedRegex("/old$", allow_slashes=False)), *there) == [
        "INBOX",
        "b/Older",
        "c",
    ]
    assert names(MappingRules(include=BoundedRegex("old")), *there) == ["a/Old", "b/Older"]
    both = MappingRules(include=BoundedRegex("old"), exclude=BoundedRegex("^a"))
    assert names(both, *there) == ["b/Older"]


@pytest.mark.parametrize(
    ("mask", "expected"),
    [
        ("*", ["INBOX", "a", "a/b", "a/b/c", "ab"]),
        ("A*", ["a", "a/b", "a/b/c", "ab"]),
        ("a/*", ["a/b", "a/b/c"]),
        ("*/c", ["a/b/c"]),
        ("a?b", ["a/b"]),
        ("?", ["a"]),
        ("a*b*c", ["a/b/c"]),
        ("a**", ["a", "a/b", "a/b/c", "ab"]),
        ("inbox", ["INBOX"]),
        ("", []),
        ("[ab]", []),
        ("a.b", []),
        ("b", []),
    ],
)
def test_masks(mask: str, expected: Sequence[str]) -> None:
    there = ["INBOX", "a", "a/b", "a/b/c", "ab"]
    assert names(MappingRules(include_masks=[mask]), *there) == expected
    assert names(MappingRules(exclude_masks=[mask]), *there) == [
        one for one in there if one not in expected
    ]


def test_several_masks() -> None:
    there = ["INBOX", "a", "b", "Entwürfe", "[x].y"]
    assert names(MappingRules(include_masks=["a", "ENTWU\u0308RFE", "[X].*"]), *there) == [
        "a",
        "Entwürfe",
        "[x].y",
    ]
    assert names(MappingRules(include_masks=["?"], exclude_masks=["b"]), *there) == ["a"]


def test_no_mask_takes_long() -> None:
    began = time.monotonic()
    name = "a" * 20_000
    assert (
        names(
            MappingRules(include_masks=["*a" * 200 + "*b", "*" * 900 + "b", "?*" * 300 + "b"]), name
        )
        == []
    )
    assert time.monotonic() - began < 5


# ---------------------------------------------------------------- rewrites


@pytest.mark.parametrize(
    ("pairs", "name", "expected"),
    [
        ([("^INBOX/", "")], "INBOX/a", "a"),
        ([("old", "new")], "Old/old", "new/old"),
        ([("^(.*)/(.*)$", "$2/$1")], "a/b", "b/a"),
        ([("^a$", "$$1 $1 $9 $x $")], "a", "$1 $x $"),
        ([("(x)?a", "[$1]b")], "a", "[]b"),
        ([("a", "b"), ("b", "c")], "a", "c"),
        ([("^", "Old/")], "a", "Old/a"),
        ([("$", "/$$")], "a", "a/$"),
        ([("z", "y")], "a", "a"),
        ([(".*", "")], "a", "INBOX"),
        ([("a", "//b//\x00c//")], "a", "b/c"),
        ([("a", "../..")], "a", "../.."),
    ],
)
def test_rewrites(pairs: list[tuple[str, str]], name: str, expected: str) -> None:
    assert path(*name.split("/"), how=rewrites(*pairs)) == expected


def test_a_rewrite_of_what_is_too_long_is_none() -> None:
    how = rewrites(("x$", "y"), ("^a", "b"))
    long = "a" * 200
    assert path(long, long, "x", how=how) == f"{long}/{long}/x"
    assert path("a", "x", how=how) == "b/y"


def test_a_rewrite_makes_nothing_that_passes_for_others() -> None:
    assert path("a", how=rewrites(("a", "\u0406NBOX"))) == "\u0406NBOX (2)"
    assert (
        path("a", how=MappingRules(rewrites=rewrites(("a", "")).rewrites, parent_path="Old"))
        == "Old"
    )


# ---------------------------------------------------------------- unsafe names


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (["a/b", "c"], "a_b/c"),
        (["/"], "_"),
        (["a\x00\r\n\tb"], "a b"),
        (["\u2028", "x"], "_/x"),
        (["  a  "], "a"),
        ([" "], "_"),
        (["\ud800"], "_"),
        (["Entwu\u0308rfe 2"], "Entwürfe 2"),
        (["\u0406NBOX"], "\u0406NBOX (2)"),
        (["a", "\u0405ent"], "a/\u0405ent (2)"),
        ([".."], ".."),
    ],
)
def test_unsafe_names(levels: list[str], expected: str) -> None:
    assert path(*levels) == expected


def test_nothing_climbs_out() -> None:
    assert path("..", "..", "x", how=MappingRules(parent_path="Old")) == "Old/../../x"
    assert path("../../x", how=MappingRules(parent_path="Old")) == "Old/.._.._x"


def test_long_and_deep_names() -> None:
    assert path("ä" * 5000) == "ä" * 255
    assert path("x" * 254 + "  yy") == "x" * 254
    deep = path(*(str(number) for number in range(1000)))
    assert deep.split("/") == [str(number) for number in range(paths.MAX_LEVELS)]
    below = path(*["x"] * 1000, how=MappingRules(parent_path="Old/Mail")).split("/")
    assert (below[:3], len(below)) == (["Old", "Mail", "x"], paths.MAX_LEVELS)
    assert map_mailboxes([listed()], MappingRules(), HERE) == []
