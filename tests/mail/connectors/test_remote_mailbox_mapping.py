"""Mapping of remote mailboxes to local paths."""

import time
from collections.abc import Sequence

import pytest

from mail.connectors.mailbox_mapping import MappingRules, remote_path, select_and_map_mailboxes
from mail.connectors.remote_server import ListedMailbox
from mail.mailboxes import paths
from mail.sieve.execution.regex_groups import compile_regex
from mail.text.bounded_regex import BoundedRegex
from models.mailboxes.tables import SpecialUse
from tests.support.case_loop import each_case

LOCAL_SPECIAL_MAILBOXES = {
    SpecialUse.SENT: "Gesendet",
    SpecialUse.TRASH: "Papierkorb",
    SpecialUse.DRAFTS: "Entwürfe",
    SpecialUse.JUNK: "Spam",
}


def listed_mailbox(*levels: str, special_use: str | None = None) -> ListedMailbox:
    return ListedMailbox("/".join(levels).encode("utf-8", "replace"), list(levels), special_use)


def map_path(
    *levels: str, special_use: str | None = None, rules: MappingRules | None = None
) -> str:
    (mapping,) = select_and_map_mailboxes(
        [listed_mailbox(*levels, special_use=special_use)],
        rules or MappingRules(),
        LOCAL_SPECIAL_MAILBOXES,
    )
    assert paths.validate_path(mapping.local_path) == mapping.local_path
    return mapping.local_path


def selected_names(rules: MappingRules, *remote_paths: str) -> list[str]:
    return [
        remote_path(mapping.remote_mailbox)
        for mapping in select_and_map_mailboxes(
            [listed_mailbox(*mapping.split("/")) for mapping in remote_paths], rules, {}
        )
    ]


def rewrite_rules(*pairs: tuple[str, str]) -> MappingRules:
    return MappingRules(
        rewrites=[
            (compile_regex(pattern, ignore_case=True), replacement)
            for pattern, replacement in pairs
        ]
    )


def test_special_use_mailbox_is_mapped_to_the_local_one() -> None:
    cases: list[tuple[list[str], str | None, str]] = [
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
    ]
    for case in each_case(cases):
        with case as (levels, special_use, expected):
            assert map_path(*levels, special_use=special_use) == expected


def test_special_use_is_not_mapped_if_disabled_or_below_a_parent() -> None:
    assert (
        map_path("Sent", special_use="\\sent", rules=MappingRules(maps_special_use=False)) == "Sent"
    )
    assert (
        map_path("Sent", special_use="\\sent", rules=MappingRules(parent_path="Old")) == "Old/Sent"
    )


@pytest.mark.parametrize("special_use", ["\\all", "\\flagged"])
def test_virtual_mailbox_is_skipped(special_use: str) -> None:
    assert (
        select_and_map_mailboxes(
            [listed_mailbox("[Gmail]", "All", special_use=special_use)],
            MappingRules(),
            LOCAL_SPECIAL_MAILBOXES,
        )
        == []
    )


def test_inbox_is_first_and_lookalikes_are_not_inbox() -> None:
    assert selected_names(MappingRules(), "a", "b", "Inbox", "\u0131nbox") == [
        "Inbox",
        "a",
        "b",
        "\u0131nbox",
    ]
    assert map_path("\u0131nbox") != "INBOX"


def test_several_mailboxes_map_to_one_path() -> None:
    remote_mailboxes = [listed_mailbox("Sent"), listed_mailbox("Gesendet"),
                        listed_mailbox("x", special_use="\\sent"), listed_mailbox("a/b"),
             listed_mailbox("a_b")]  # fmt: skip
    local_paths = [
        mapping.local_path
        for mapping in select_and_map_mailboxes(
            remote_mailboxes, MappingRules(), LOCAL_SPECIAL_MAILBOXES
        )
    ]
    assert local_paths == ["Gesendet"] * 3 + ["a_b"] * 2


def test_include_and_exclude_patterns_select_mailboxes() -> None:
    remote_paths = ("INBOX", "a/Old", "b/Older", "c")
    assert selected_names(
        MappingRules(exclude=BoundedRegex("/old$", allow_slashes=False)), *remote_paths
    ) == [
        "INBOX",
        "b/Older",
        "c",
    ]
    assert selected_names(MappingRules(include=BoundedRegex("old")), *remote_paths) == [
        "a/Old",
        "b/Older",
    ]
    both = MappingRules(include=BoundedRegex("old"), exclude=BoundedRegex("^a"))
    assert selected_names(both, *remote_paths) == ["b/Older"]


def test_mask_includes_or_excludes_mailboxes() -> None:
    remote_paths = ["INBOX", "a", "a/b", "a/b/c", "ab"]
    cases: list[tuple[str, Sequence[str]]] = [
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
    ]
    for case in each_case(cases):
        with case as (pattern, expected):
            assert (
                selected_names(MappingRules(include_patterns=[pattern]), *remote_paths) == expected
            )
            assert selected_names(MappingRules(exclude_patterns=[pattern]), *remote_paths) == [
                name for name in remote_paths if name not in expected
            ]


def test_several_patterns_are_combined() -> None:
    remote_paths = ["INBOX", "a", "b", "Entwürfe", "[x].y"]
    assert selected_names(
        MappingRules(include_patterns=["a", "ENTWU\u0308RFE", "[X].*"]), *remote_paths
    ) == [
        "a",
        "Entwürfe",
        "[x].y",
    ]
    assert selected_names(
        MappingRules(include_patterns=["?"], exclude_patterns=["b"]), *remote_paths
    ) == ["a"]


def test_hostile_patterns_are_matched_quickly() -> None:
    began = time.process_time()
    name = "a" * 20_000
    assert (
        selected_names(
            MappingRules(include_patterns=["*a" * 200 + "*b", "*" * 900 + "b", "?*" * 300 + "b"]),
            name,
        )
        == []
    )
    assert time.process_time() - began < 5


def test_rewrites_change_the_path() -> None:
    cases: list[tuple[list[tuple[str, str]], str, str]] = [
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
    ]
    for case in each_case(cases):
        with case as (pairs, name, expected):
            assert map_path(*name.split("/"), rules=rewrite_rules(*pairs)) == expected


def test_rewrite_of_a_too_long_path_is_skipped() -> None:
    rules = rewrite_rules(("x$", "y"), ("^a", "b"))
    long = "a" * 200
    assert map_path(long, long, "x", rules=rules) == f"{long}/{long}/x"
    assert map_path("a", "x", rules=rules) == "b/y"


def test_rewrite_to_a_lookalike_or_empty_name_is_corrected() -> None:
    assert map_path("a", rules=rewrite_rules(("a", "\u0406NBOX"))) == "\u0406NBOX (2)"
    assert (
        map_path(
            "a", rules=MappingRules(rewrites=rewrite_rules(("a", "")).rewrites, parent_path="Old")
        )
        == "Old"
    )


def test_unsafe_names_are_cleaned() -> None:
    cases: list[tuple[list[str], str]] = [
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
    ]
    for case in each_case(cases):
        with case as (levels, expected):
            assert map_path(*levels) == expected


def test_dots_do_not_leave_the_parent() -> None:
    assert map_path("..", "..", "x", rules=MappingRules(parent_path="Old")) == "Old/../../x"
    assert map_path("../../x", rules=MappingRules(parent_path="Old")) == "Old/.._.._x"


def test_long_names_and_deep_paths_are_shortened() -> None:
    assert map_path("ä" * 5000) == "ä" * 255
    assert map_path("x" * 254 + "  yy") == "x" * 254
    deep = map_path(*(str(number) for number in range(1000)))
    assert deep.split("/") == [str(number) for number in range(paths.MAX_LEVELS)]
    below = map_path(*["x"] * 1000, rules=MappingRules(parent_path="Old/Mail")).split("/")
    assert (below[:3], len(below)) == (["Old", "Mail", "x"], paths.MAX_LEVELS)
    assert (
        select_and_map_mailboxes([listed_mailbox()], MappingRules(), LOCAL_SPECIAL_MAILBOXES) == []
    )
