"""Key-value stores: entries, expiry, versions, increments, lists and limits."""

import asyncio
from typing import Any

import pytest

from mail.maintenance import housekeeping
from models.errors import InvalidInput
from models.runtime.environment import Environment
from models.store.database import Database
from models.store.keyset_pages import PageRequest
from models.users.roles import Role, Scope
from resolvers.admin import key_values
from resolvers.admin.key_values import KeyValueListConditions, KeyValueNamespace
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts.key_value_operations import (
    KEY_VALUE_QUERY,
    KEY_VALUES_QUERY,
    change_options,
    list_keys,
    load_key_value_rows,
    load_value,
    run_failing_mutation,
    run_key_value_mutation,
    set_value,
)
from tests.support.case_loop import each_case
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def test_value_is_stored_unchanged(ada: GraphQLClient) -> None:
    assert await load_value(ada, "ui/theme") is None
    text = "dark\n\t \U0001f986 'x' \x01"
    entry = await set_value(ada, "ui/theme", text)
    assert (entry["key"], entry["value"], entry["store"]) == ("ui/theme", text, "default")
    assert (entry["shared"], entry["expiresAt"]) == (False, None)
    assert (await ada(KEY_VALUE_QUERY, key="ui/theme"))["keyValue"] == entry
    updated = await set_value(ada, "ui/theme", "")
    assert (updated["id"], updated["value"]) == (entry["id"], "")
    assert updated["version"] > entry["version"]
    assert await load_value(ada, "ui/Theme") is None
    document = "query ($id: ID!) { node(id: $id) { ... on KeyValueEntry { key value } } }"
    node = (await ada(document, id=entry["id"]))["node"]
    assert node == {"key": "ui/theme", "value": ""}


async def test_field_of_user_reads_the_default_store(ada: GraphQLClient) -> None:
    change_options(ada.environment, key_value_stores=("default", "other"))
    await set_value(ada, "a", "1")
    await set_value(ada, "a", "2", store="other")
    document = '{ viewer { user { keyValue(key: "a") { value } } } }'
    assert (await ada(document))["viewer"]["user"]["keyValue"] == {"value": "1"}
    assert await load_value(ada, "a", store="other") == "2"
    assert (await run_key_value_mutation(ada, "keyValueDelete", key="a"))["deletedCount"] == 1
    assert await list_keys(ada, store="other") == ["a"]


async def test_expired_entry_is_not_found(ada: GraphQLClient, clock: ManualClock) -> None:
    first = await set_value(ada, "a/b", "5", ttl="PT1M")
    assert first["expiresAt"] == "2030-01-01T00:01:00Z"
    await set_value(ada, "a/b", "6")  # removes the expiry
    first = await set_value(ada, "a/b", "5", ttl="PT1M")
    incremented = await run_key_value_mutation(ada, "keyValueIncrement", key="a/b", delta=1)
    assert incremented["keyValueEntry"]["expiresAt"] == first["expiresAt"]
    clock.tick(seconds=59)
    assert await load_value(ada, "a/b") == "6"
    clock.tick(seconds=1)
    assert await load_value(ada, "a/b") is None
    assert await list_keys(ada, recursive=True) == await list_keys(ada, exactKey="a/b") == []
    assert (await run_key_value_mutation(ada, "keyValueDelete", key="a", recursive=True))[
        "deletedCount"
    ] == 0
    await set_value(ada, "a/b", "5", ttl="PT1M")
    clock.tick(minutes=1)
    error = await run_failing_mutation(ada, "keyValueIncrement", key="a/b", delta=1)
    assert error["code"] == "NOT_FOUND"
    stale = await run_failing_mutation(
        ada, "keyValueSet", key="a/b", value="1", ifVersion=first["version"]
    )
    assert stale["currentModseq"] == 0
    fresh = await set_value(ada, "a/b", "7", ifVersion=0)
    assert fresh["id"] != first["id"]
    assert await load_value(ada, "a/b") == "7"


async def test_expired_entry_is_deleted_by_housekeeping(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    for key, extra in (("for ever", {}), ("long", {"ttl": "P1D"}), ("short", {"ttl": "PT1S"})):
        await set_value(ada, key, **extra)
    assert (await housekeeping.run_housekeeping_round(ada.environment, sweep=False)).key_values == 0
    clock.tick(hours=1)
    assert (await housekeeping.run_housekeeping_round(ada.environment, sweep=False)).key_values == 1
    assert [row[2] for row in await load_key_value_rows(ada.environment)] == ["for ever", "long"]


async def test_if_version_refuses_a_stale_version(ada: GraphQLClient) -> None:
    missing = await run_failing_mutation(ada, "keyValueSet", key="a", value="1", ifVersion=7)
    assert (missing["code"], missing["path"], missing["currentModseq"]) == (
        "STALE",
        ["ifVersion"],
        0,
    )
    first = await set_value(ada, "a", "1", ifVersion=0)
    existing = await run_failing_mutation(ada, "keyValueSet", key="a", value="2", ifVersion=0)
    assert (existing["code"], existing["currentModseq"]) == ("STALE", first["version"])
    second = await set_value(ada, "a", "2", ifVersion=first["version"])
    stale = await run_failing_mutation(
        ada, "keyValueSet", key="a", value="3", ifVersion=first["version"]
    )
    assert stale["currentModseq"] == second["version"]
    await run_key_value_mutation(ada, "keyValueDelete", key="a")
    third = await set_value(ada, "a", "1")
    assert third["version"] not in (first["version"], second["version"])


async def test_one_of_concurrent_writes_with_if_version_succeeds(ada: GraphQLClient) -> None:
    version = (await set_value(ada, "a", "0"))["version"]
    attempts = (
        run_key_value_mutation(ada, "keyValueSet", key="a", value=str(n), ifVersion=version)
        for n in range(8)
    )
    answers = await asyncio.gather(*attempts)
    (winner,) = [answer["keyValueEntry"] for answer in answers if answer["keyValueEntry"]]
    assert await load_value(ada, "a") == winner["value"]
    errors = [answer["errors"][0] for answer in answers if answer["errors"]]
    assert {(e["code"], e["currentModseq"]) for e in errors} == {("STALE", winner["version"])}


MAX_NUMBER = 2**53 - 1
INCREMENTS: list[tuple[str | None, Any, Any]] = [
    ("5", 3, "8"),
    ("5", -8, "-3"),
    ("-0", 0, "0"),
    ("007", "1", "8"),
    (None, 4, "4"),
    (str(MAX_NUMBER - 1), 1, str(MAX_NUMBER)),
    (str(1 - MAX_NUMBER), -1, str(-MAX_NUMBER)),
    (str(-MAX_NUMBER), 2 * MAX_NUMBER // 2, "0"),
]


async def test_increment_adds_to_the_number(ada: GraphQLClient) -> None:
    for case in each_case(enumerate(INCREMENTS)):
        with case as (number, (before, delta, after)):
            key = f"n{number}"
            if before is not None:
                await set_value(ada, key, before)
            arguments = {"key": key, "delta": delta, "createMissing": True}
            payload = await run_key_value_mutation(ada, "keyValueIncrement", **arguments)
            assert (payload["errors"], payload["keyValueEntry"]["value"]) == ([], after)
            assert await load_value(ada, key) == after


INVALID_INCREMENTS: list[tuple[str | None, int, tuple[str, list[str], str | None]]] = [
    (None, 1, ("NOT_FOUND", ["key"], None)),
    ("dark", 1, ("VALIDATION", ["key"], "NUMBER")),
    ("", 1, ("VALIDATION", ["key"], "NUMBER")),
    ("1.5", 1, ("VALIDATION", ["key"], "NUMBER")),
    ("1e3", 1, ("VALIDATION", ["key"], "NUMBER")),
    (" 1", 1, ("VALIDATION", ["key"], "NUMBER")),
    ("\u0663", 1, ("VALIDATION", ["key"], "NUMBER")),
    (str(MAX_NUMBER + 1), -1, ("VALIDATION", ["key"], "NUMBER")),
    ("9" * 400, 1, ("VALIDATION", ["key"], "NUMBER")),
    (str(MAX_NUMBER), 1, ("VALIDATION", ["delta"], "MAX")),
    (str(-MAX_NUMBER), -1, ("VALIDATION", ["delta"], "MIN")),
    (str(MAX_NUMBER), MAX_NUMBER, ("VALIDATION", ["delta"], "MAX")),
]


async def test_invalid_increment_is_refused(ada: GraphQLClient) -> None:
    for case in each_case(enumerate(INVALID_INCREMENTS)):
        with case as (number, (before, delta, expected)):
            key = f"n{number}"
            if before is not None:
                await set_value(ada, key, before)
            error = await run_failing_mutation(ada, "keyValueIncrement", key=key, delta=delta)
            assert (error["code"], error["path"], error.get("constraint")) == expected


async def test_concurrent_increments_of_two_processes_are_all_counted(
    ada: GraphQLClient, database: Database
) -> None:
    """Each process has its own database connection pool."""
    other_database = Database(database.url)
    environments = [
        ada.environment,
        Environment(
            other_database,
            ada.environment.object_store,
            signing_secret=b"s" * 32,
            now=ada.environment.now,
        ),
    ]

    async def increment(delta: int) -> int:
        viewer = Viewer(ada.user.id, Role.USER, frozenset({Scope.FULL}))
        entry = await key_values.increment_key_value(
            Context(environments[delta % 2], viewer),
            KeyValueNamespace(ada.user.id),
            "n",
            delta,
            create_missing=True,
        )
        return int(entry.value)

    try:
        values = await asyncio.gather(*(increment(delta) for delta in range(1, 41)))
    finally:
        await other_database.close()
    assert await load_value(ada, "n") == str(max(values)) == str(sum(range(1, 41)))
    assert len(set(values)) == 40
    statement = "SELECT count(*) FROM changes WHERE type LIKE 'KEY_VALUE_%'"
    assert await select_rows(ada.environment, statement) == [(40,)]


TREE_KEYS = [
    "ui",
    "ui/a",
    "ui/a/b",
    "ui/a/b/c",
    "ui/b",
    "ui-x",
    "ui0",
    "uiz/a",
    "Z",
    "zebra",
    "ä",
    "Ä/1",
]
LIST_CASES: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["Z", "ui", "ui-x", "ui0", "zebra", "ä"]),
    ({"recursive": True}, sorted(TREE_KEYS)),
    ({"prefix": "ui"}, ["ui", "ui-x", "ui0"]),
    ({"prefix": "ui", "recursive": True}, sorted(key for key in TREE_KEYS if key.startswith("ui"))),
    ({"prefix": "ui/"}, ["ui/a", "ui/b"]),
    ({"prefix": "ui/", "recursive": True}, ["ui/a", "ui/a/b", "ui/a/b/c", "ui/b"]),
    ({"prefix": "ui/a/"}, ["ui/a/b"]),
    ({"prefix": "ui/a/", "recursive": True}, ["ui/a/b", "ui/a/b/c"]),
    ({"exactKey": "ui"}, ["ui"]),
    ({"exactKey": "ui/a", "recursive": True}, ["ui/a"]),
    ({"exactKey": "ui/"}, []),
    ({"prefix": "Ä", "recursive": True}, ["Ä/1"]),
    ({"prefix": "%", "recursive": True}, []),
    ({"prefix": "u_", "recursive": True}, []),
    ({"prefix": "/", "recursive": True}, []),
]


async def test_list_has_levels_and_prefixes_in_byte_order(ada: GraphQLClient) -> None:
    assert sorted(TREE_KEYS) == sorted(TREE_KEYS, key=str.encode)
    for key in TREE_KEYS:
        await set_value(ada, key, f"of {key}")
    for arguments, expected in LIST_CASES:
        assert await list_keys(ada, **arguments) == expected, arguments
        page = (await ada(KEY_VALUES_QUERY, **arguments, keysOnly=True))["keyValues"]
        assert [(n["key"], n["value"]) for n in page["nodes"]] == [(k, None) for k in expected], (
            arguments
        )
    page = (await ada(KEY_VALUES_QUERY, recursive=True))["keyValues"]
    assert all(node["value"] == f"of {node['key']}" for node in page["nodes"])


async def test_pagination_works_in_both_directions(ada: GraphQLClient) -> None:
    for key in TREE_KEYS:
        await set_value(ada, key)
    expected = sorted(TREE_KEYS)
    seen: list[str] = []
    after = None
    while True:
        page = (await ada(KEY_VALUES_QUERY, recursive=True, first=5, after=after))["keyValues"]
        seen += [node["key"] for node in page["nodes"]]
        after = page["pageInfo"]["endCursor"]
        assert page["totalCount"] == len(TREE_KEYS)
        if not page["pageInfo"]["hasNextPage"]:
            break
    assert seen == expected
    last = (await ada(KEY_VALUES_QUERY, recursive=True, last=5))["keyValues"]
    assert [node["key"] for node in last["nodes"]] == expected[-5:]
    descending = await list_keys(ada, recursive=True, orderBy="KEY_DESC")
    assert descending == expected[::-1]
    before = last["pageInfo"]["startCursor"]
    assert await list_keys(ada, recursive=True, last=250, before=before) == expected[:-5]
    for other in ({"recursive": False}, {"prefix": "u"}, {"shared": True}, {"orderBy": "KEY_DESC"}):
        answer = await ada.execute(KEY_VALUES_QUERY, **{"recursive": True, **other}, after=after)
        assert answer["errors"][0]["extensions"]["code"] == "BAD_CURSOR", other


async def test_recursive_delete_removes_only_keys_below(ada: GraphQLClient) -> None:
    for key in TREE_KEYS:
        await set_value(ada, key)
    assert (await run_key_value_mutation(ada, "keyValueDelete", key="ui"))["deletedCount"] == 1
    assert await list_keys(ada, recursive=True) == sorted(set(TREE_KEYS) - {"ui"})
    deleted = {"ui/a", "ui/a/b", "ui/a/b/c"}
    assert (await run_key_value_mutation(ada, "keyValueDelete", key="ui/a", recursive=True))[
        "deletedCount"
    ] == 3
    assert await list_keys(ada, recursive=True) == sorted(set(TREE_KEYS) - {"ui", *deleted})
    assert (await run_key_value_mutation(ada, "keyValueDelete", key="ui", recursive=True))[
        "deletedCount"
    ] == 1
    assert await list_keys(ada, "ui", recursive=True) == ["ui-x", "ui0", "uiz/a"]
    assert (await run_key_value_mutation(ada, "keyValueDelete", key="ui", recursive=True))[
        "deletedCount"
    ] == 0


INVALID_ENTRIES: list[tuple[dict[str, Any], str, str, list[str]]] = [
    ({"key": ""}, "VALIDATION", "PATTERN", ["key"]),
    ({"key": "/"}, "VALIDATION", "PATTERN", ["key"]),
    ({"key": "/a"}, "VALIDATION", "PATTERN", ["key"]),
    ({"key": "a/"}, "VALIDATION", "PATTERN", ["key"]),
    ({"key": "a//b"}, "VALIDATION", "PATTERN", ["key"]),
    ({"key": "a\nb"}, "VALIDATION", "PATTERN", ["key"]),
    ({"key": "a\x7f"}, "VALIDATION", "PATTERN", ["key"]),
    ({"key": "a\x9b"}, "VALIDATION", "PATTERN", ["key"]),
    ({"key": "a\U0010ffff"}, "VALIDATION", "PATTERN", ["key"]),
    ({"key": "ä" * 513}, "VALIDATION", "MAX", ["key"]),
    ({"key": "ä" * 257}, "LIMIT_REACHED", "", ["key"]),
    ({"key": "/".join("a" * 17)}, "LIMIT_REACHED", "", ["key"]),
    ({"value": "ä" * (1 + (1 << 15))}, "LIMIT_REACHED", "", ["value"]),
    ({"ttl": "PT0S"}, "VALIDATION", "MIN", ["ttl"]),
    ({"ttl": "PT0.5S"}, "VALIDATION", "MIN", ["ttl"]),
    ({"ttl": "P3651D"}, "VALIDATION", "MAX", ["ttl"]),
    ({"store": "nowhere"}, "VALIDATION", "UNKNOWN", ["store"]),
    ({"store": ""}, "VALIDATION", "UNKNOWN", ["store"]),
    ({"store": "DEFAULT"}, "VALIDATION", "UNKNOWN", ["store"]),
    ({"shared": True, "user": {"username": "ada"}}, "VALIDATION", "EXCLUSIVE", ["shared"]),
    ({"user": {"username": "nobody"}}, "NOT_FOUND", "", ["user"]),
]


async def test_invalid_entry_is_refused_by_rule(ada: GraphQLClient) -> None:
    for case in each_case(INVALID_ENTRIES):
        with case as (arguments, code, constraint, path):
            error = await run_failing_mutation(
                ada, "keyValueSet", **{"key": "a", "value": "1", **arguments}
            )
            assert (error["code"], error.get("constraint", ""), error["path"]) == (
                code,
                constraint,
                path,
            )
            if code == "LIMIT_REACHED":
                assert error["used"] > error["limit"]


async def test_largest_key_and_value_are_accepted(ada: GraphQLClient) -> None:
    for key in ("ä" * 256, "/".join("a" * 16)):
        await set_value(ada, key, "ä" * (1 << 15))
        assert len(await load_value(ada, key) or "") == 1 << 15
    change_options(ada.environment, key_value_max_key_size=1, key_value_max_key_levels=1)
    await set_value(ada, "ä" * 256, "what is there goes on")
    assert (await run_key_value_mutation(ada, "keyValueDelete", key="/".join("a" * 16)))[
        "deletedCount"
    ] == 1


INVALID_QUERIES: list[tuple[str, dict[str, Any]]] = [
    (KEY_VALUE_QUERY, {"key": "a//b"}),
    (KEY_VALUE_QUERY, {"key": "a\nb"}),
    (KEY_VALUE_QUERY, {"key": "a" * 2000}),
    (KEY_VALUE_QUERY, {"key": "a", "store": "nowhere"}),
    (KEY_VALUE_QUERY, {"key": "a", "shared": True, "user": {"username": "ada"}}),
    (KEY_VALUES_QUERY, {"prefix": "a\nb"}),
    (KEY_VALUES_QUERY, {"prefix": "a" * 2000}),
    (KEY_VALUES_QUERY, {"exactKey": ""}),
    (KEY_VALUES_QUERY, {"store": "nowhere"}),
]


async def test_invalid_query_is_refused_with_a_code(ada: GraphQLClient) -> None:
    for document, arguments in INVALID_QUERIES:
        answer = await ada.execute(document, **arguments)
        assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT", arguments


async def test_invalid_list_condition_is_named_in_the_error(ada: GraphQLClient) -> None:
    cases: list[tuple[dict[str, Any], list[str], str]] = [
        ({"prefix": "a" * 2000}, ["filter", "prefix"], "A prefix has at most 1024 bytes."),
        ({"prefix": "a\nb"}, ["filter", "prefix"], "A prefix can't contain control characters."),
        ({"exactKey": "a" * 2000}, ["filter", "exactKey"], "A key has at most 1024 bytes."),
        ({"exactKey": "a\nb"}, ["filter", "exactKey"], "A key can't contain control characters."),
        ({"exactKey": ""}, ["filter", "exactKey"], "A key is required."),
        (
            {"store": "nowhere"},
            ["filter", "store"],
            "There is no key-value store with this name.",
        ),
    ]
    for case in each_case(cases):
        with case as (arguments, path, message):
            (error,) = (await ada.execute(KEY_VALUES_QUERY, **arguments))["errors"]
            assert error["message"] == message
            namespace = KeyValueNamespace(ada.user.id, arguments.get("store", "default"))
            text = arguments.get("prefix", arguments.get("exactKey", ""))
            conditions = KeyValueListConditions(namespace, text, is_exact="exactKey" in arguments)
            ctx = Context(ada.environment, Viewer(ada.user.id, Role.USER))
            with pytest.raises(InvalidInput) as refusal:  # the path is not part of the response
                await key_values.read_visible_key_value_page(
                    ctx, conditions, PageRequest("x"), set()
                )
            assert (refusal.value.message, refusal.value.path) == (message, path)


async def test_number_of_entries_and_bytes_is_limited(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    change_options(
        ada.environment,
        key_value_max_entries=3,
        key_value_max_total_size=30,
        key_value_stores=("default", "b"),
    )
    await set_value(ada, "1", "x" * 9)
    await set_value(ada, "2", "x" * 9, store="b")
    await set_value(ada, "3", "x", ttl="PT1M")
    full_error = await run_failing_mutation(ada, "keyValueSet", key="4", value="")
    assert (full_error["code"], full_error["path"], full_error["limit"], full_error["used"]) == (
        "LIMIT_REACHED", ["key"], 3, 3,
    )  # fmt: skip
    arguments = {"key": "4", "delta": 1, "createMissing": True}
    assert (await run_failing_mutation(ada, "keyValueIncrement", **arguments))[
        "code"
    ] == "LIMIT_REACHED"
    byte_error = await run_failing_mutation(ada, "keyValueSet", key="1", value="x" * 18)
    assert (byte_error["path"], byte_error["limit"], byte_error["used"]) == (["value"], 30, 22)
    await set_value(ada, "1", "x" * 17)
    await set_value(ada, "1", "x" * 16)
    clock.tick(minutes=1)  # expired entries don't count
    await set_value(ada, "4", "")
    change_options(ada.environment, key_value_max_entries=0, key_value_max_total_size=0)
    await set_value(ada, "1", "x" * 16)  # a value that is not larger is always accepted
    await set_value(ada, "1", "x")
    assert (await run_failing_mutation(ada, "keyValueSet", key="1", value="xx"))["path"] == [
        "value"
    ]


async def test_concurrent_writes_respect_the_limit(ada: GraphQLClient) -> None:
    change_options(ada.environment, key_value_max_entries=5)
    answers = await asyncio.gather(
        *(run_key_value_mutation(ada, "keyValueSet", key=str(n), value="x") for n in range(9))
    )
    assert sum(answer["errors"] == [] for answer in answers) == 5
    assert len(await load_key_value_rows(ada.environment)) == 5
