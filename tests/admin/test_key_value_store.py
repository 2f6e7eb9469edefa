"""Key-value stores: entries, their ends and versions, lists, limits, and whose they are."""

import asyncio
from typing import Any

import pytest

from graph.types import global_ids
from mail.maintenance import housekeeping
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from models.store.database import Database
from models.users.roles import AdminPermission, Role, Scope
from resolvers.admin import key_values
from resolvers.admin.key_values import KeyValueNamespace
from resolvers.context import Context, Viewer
from tests.conftest import Client, Clock, make_client, make_key
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.key_value_operations import (
    LIST,
    ONE,
    done,
    kept,
    keys,
    limit,
    put,
    refusal,
    value,
)
from tests.support.stores.counter_check import rows

pytestmark = pytest.mark.usefixtures("examined")


# entries


async def test_a_value_is_kept_as_it_is(ada: Client) -> None:
    assert await value(ada, "ui/theme") is None
    text = "dark\n\t \U0001f986 'x' \x01"
    made = await put(ada, "ui/theme", text)
    assert (made["key"], made["value"], made["store"]) == ("ui/theme", text, "default")
    assert (made["shared"], made["expiresAt"]) == (False, None)
    assert (await ada(ONE, key="ui/theme"))["keyValue"] == made
    again = await put(ada, "ui/theme", "")
    assert (again["id"], again["value"]) == (made["id"], "")
    assert again["version"] > made["version"]
    assert await value(ada, "ui/Theme") is None
    document = "query ($id: ID!) { node(id: $id) { ... on KeyValue { key value } } }"
    node = (await ada(document, id=made["id"]))["node"]
    assert node == {"key": "ui/theme", "value": ""}


async def test_an_entry_of_the_user_is_one_of_the_store_default(ada: Client) -> None:
    limit(ada.world, key_value_stores=("default", "other"))
    await put(ada, "a", "1")
    await put(ada, "a", "2", store="other")
    document = '{ viewer { user { keyValue(key: "a") { value } } } }'
    assert (await ada(document))["viewer"]["user"]["keyValue"] == {"value": "1"}
    assert await value(ada, "a", store="other") == "2"
    assert (await done(ada, "keyValueDelete", key="a"))["deleted"] == 1
    assert await keys(ada, store="other") == ["a"]


async def test_what_has_ended_is_not_there(ada: Client, clock: Clock) -> None:
    first = await put(ada, "a/b", "5", ttl="PT1M")
    assert first["expiresAt"] == "2030-01-01T00:01:00Z"
    await put(ada, "a/b", "6")  # without an end again
    first = await put(ada, "a/b", "5", ttl="PT1M")
    counted = await done(ada, "keyValueIncrement", key="a/b", difference=1)
    assert counted["entry"]["expiresAt"] == first["expiresAt"]
    clock.tick(seconds=59)
    assert await value(ada, "a/b") == "6"
    clock.tick(seconds=1)
    assert await value(ada, "a/b") is None
    assert await keys(ada, recurse=True) == await keys(ada, "a/b", exact=True) == []
    assert (await done(ada, "keyValueDelete", key="a", recursive=True))["deleted"] == 0
    await put(ada, "a/b", "5", ttl="PT1M")
    clock.tick(minutes=1)
    error = await refusal(ada, "keyValueIncrement", key="a/b", difference=1)
    assert error["code"] == "NOT_FOUND"
    stale = await refusal(ada, "keyValueSet", key="a/b", value="1", ifVersion=first["version"])
    assert stale["currentModseq"] == 0
    fresh = await put(ada, "a/b", "7", ifVersion=0)
    assert fresh["id"] != first["id"]
    assert await value(ada, "a/b") == "7"


async def test_what_has_ended_is_removed_by_housekeeping(ada: Client, clock: Clock) -> None:
    for key, more in (("for ever", {}), ("long", {"ttl": "P1D"}), ("short", {"ttl": "PT1S"})):
        await put(ada, key, **more)
    assert (await housekeeping.run_round(ada.world, sweep=False)).key_values == 0
    clock.tick(hours=1)
    assert (await housekeeping.run_round(ada.world, sweep=False)).key_values == 1
    assert [row[2] for row in await kept(ada.world)] == ["for ever", "long"]


# versions


async def test_a_value_is_set_only_over_the_version_that_was_read(ada: Client) -> None:
    none = await refusal(ada, "keyValueSet", key="a", value="1", ifVersion=7)
    assert (none["code"], none["path"], none["currentModseq"]) == ("STALE", ["ifVersion"], 0)
    first = await put(ada, "a", "1", ifVersion=0)
    there = await refusal(ada, "keyValueSet", key="a", value="2", ifVersion=0)
    assert (there["code"], there["currentModseq"]) == ("STALE", first["version"])
    second = await put(ada, "a", "2", ifVersion=first["version"])
    old = await refusal(ada, "keyValueSet", key="a", value="3", ifVersion=first["version"])
    assert old["currentModseq"] == second["version"]
    await done(ada, "keyValueDelete", key="a")
    third = await put(ada, "a", "1")
    assert third["version"] not in (first["version"], second["version"])


async def test_of_many_who_set_over_one_version_one_succeeds(ada: Client) -> None:
    seen = (await put(ada, "a", "0"))["version"]
    tries = (done(ada, "keyValueSet", key="a", value=str(n), ifVersion=seen) for n in range(8))
    answers = await asyncio.gather(*tries)
    (won,) = [answer["entry"] for answer in answers if answer["entry"]]
    assert await value(ada, "a") == won["value"]
    lost = [answer["errors"][0] for answer in answers if answer["errors"]]
    assert {(e["code"], e["currentModseq"]) for e in lost} == {("STALE", won["version"])}


# counting

MOST = 2**53 - 1
COUNTED: list[tuple[str | None, Any, Any]] = [
    ("5", 3, "8"),
    ("5", -8, "-3"),
    ("-0", 0, "0"),
    ("007", "1", "8"),
    (None, 4, "4"),
    (str(MOST - 1), 1, str(MOST)),
    (str(1 - MOST), -1, str(-MOST)),
    (str(-MOST), 2 * MOST // 2, "0"),
]


@pytest.mark.parametrize(("before", "difference", "after"), COUNTED)
async def test_a_number_is_added_to(
    ada: Client, before: str | None, difference: Any, after: str
) -> None:
    if before is not None:
        await put(ada, "n", before)
    given = {"key": "n", "difference": difference, "createMissing": True}
    payload = await done(ada, "keyValueIncrement", **given)
    assert (payload["errors"], payload["entry"]["value"]) == ([], after)
    assert await value(ada, "n") == after


UNCOUNTED: list[tuple[str | None, int, tuple[str, list[str], str | None]]] = [
    (None, 1, ("NOT_FOUND", ["key"], None)),
    ("dark", 1, ("VALIDATION", ["key"], "number")),
    ("", 1, ("VALIDATION", ["key"], "number")),
    ("1.5", 1, ("VALIDATION", ["key"], "number")),
    ("1e3", 1, ("VALIDATION", ["key"], "number")),
    (" 1", 1, ("VALIDATION", ["key"], "number")),
    ("\u0663", 1, ("VALIDATION", ["key"], "number")),
    (str(MOST + 1), -1, ("VALIDATION", ["key"], "number")),
    ("9" * 400, 1, ("VALIDATION", ["key"], "number")),
    (str(MOST), 1, ("VALIDATION", ["difference"], "max")),
    (str(-MOST), -1, ("VALIDATION", ["difference"], "min")),
    (str(MOST), MOST, ("VALIDATION", ["difference"], "max")),
]


@pytest.mark.parametrize(("before", "difference", "told"), UNCOUNTED)
async def test_what_is_no_number_or_leaves_the_range_is_not_added_to(
    ada: Client, before: str | None, difference: int, told: Any
) -> None:
    if before is not None:
        await put(ada, "n", before)
    error = await refusal(ada, "keyValueIncrement", key="n", difference=difference)
    assert (error["code"], error["path"], error.get("constraint")) == told


async def test_of_many_increments_at_once_none_is_lost(ada: Client, database: Database) -> None:
    """From two processes: each has a store of its own to go through, and its own turns."""
    beside = Database(database.url)
    worlds = [
        ada.world,
        Environment(beside, ada.world.object_store, signing_secret=b"s" * 32, now=ada.world.now),
    ]

    async def one(n: int) -> int:
        viewer = Viewer(ada.user.id, Role.USER, frozenset({Scope.MASTER}))
        entry = await key_values.increment_value(
            Context(worlds[n % 2], viewer),
            KeyValueNamespace(ada.user.id),
            "n",
            n,
            create_missing=True,
        )
        return int(entry.value)

    try:
        seen = await asyncio.gather(*(one(n) for n in range(1, 41)))
    finally:
        await beside.close()
    assert await value(ada, "n") == str(max(seen)) == str(sum(range(1, 41)))
    assert len(set(seen)) == 40
    told = "SELECT count(*) FROM changes WHERE kind = 'KEY_VALUE_CHANGED'"
    assert await rows(ada.world, told) == [(40,)]


# lists

TREE = [
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
LISTS: list[tuple[dict[str, Any], list[str]]] = [
    ({}, ["Z", "ui", "ui-x", "ui0", "zebra", "ä"]),
    ({"recurse": True}, sorted(TREE)),
    ({"prefix": "ui"}, ["ui", "ui-x", "ui0"]),
    ({"prefix": "ui", "recurse": True}, sorted(key for key in TREE if key.startswith("ui"))),
    ({"prefix": "ui/"}, ["ui/a", "ui/b"]),
    ({"prefix": "ui/", "recurse": True}, ["ui/a", "ui/a/b", "ui/a/b/c", "ui/b"]),
    ({"prefix": "ui/a/"}, ["ui/a/b"]),
    ({"prefix": "ui/a/", "recurse": True}, ["ui/a/b", "ui/a/b/c"]),
    ({"prefix": "ui", "exact": True}, ["ui"]),
    ({"prefix": "ui/a", "exact": True, "recurse": True}, ["ui/a"]),
    ({"prefix": "ui/", "exact": True}, []),
    ({"prefix": "Ä", "recurse": True}, ["Ä/1"]),
    ({"prefix": "%", "recurse": True}, []),
    ({"prefix": "u_", "recurse": True}, []),
    ({"prefix": "/", "recurse": True}, []),
]


async def test_lists_have_levels_and_prefixes_in_the_order_of_bytes(ada: Client) -> None:
    assert sorted(TREE) == sorted(TREE, key=str.encode)
    for key in TREE:
        await put(ada, key, f"of {key}")
    for asked, found in LISTS:
        assert await keys(ada, **asked) == found, asked
        page = (await ada(LIST, **asked, noValue=True))["keyValues"]
        assert [(n["key"], n["value"]) for n in page["nodes"]] == [(k, None) for k in found], asked
    page = (await ada(LIST, recurse=True))["keyValues"]
    assert all(node["value"] == f"of {node['key']}" for node in page["nodes"])


async def test_pages_meet_both_ways(ada: Client) -> None:
    for key in TREE:
        await put(ada, key)
    whole = sorted(TREE)
    seen: list[str] = []
    after = None
    while True:
        page = (await ada(LIST, recurse=True, first=5, after=after))["keyValues"]
        seen += [node["key"] for node in page["nodes"]]
        after = page["pageInfo"]["endCursor"]
        assert page["totalCount"] == len(TREE)
        if not page["pageInfo"]["hasNextPage"]:
            break
    assert seen == whole
    last = (await ada(LIST, recurse=True, last=5))["keyValues"]
    assert [node["key"] for node in last["nodes"]] == whole[-5:]
    before = last["pageInfo"]["startCursor"]
    assert await keys(ada, recurse=True, last=250, before=before) == whole[:-5]
    for other in ({"recurse": False}, {"prefix": "u"}, {"shared": True}):
        answer = await ada.raw(LIST, **{"recurse": True, **other}, after=after)
        assert answer["errors"][0]["extensions"]["code"] == "BAD_CURSOR", other


async def test_deleting_takes_what_is_below_and_nothing_beside(ada: Client) -> None:
    for key in TREE:
        await put(ada, key)
    assert (await done(ada, "keyValueDelete", key="ui"))["deleted"] == 1
    assert await keys(ada, recurse=True) == sorted(set(TREE) - {"ui"})
    gone = {"ui/a", "ui/a/b", "ui/a/b/c"}
    assert (await done(ada, "keyValueDelete", key="ui/a", recursive=True))["deleted"] == 3
    assert await keys(ada, recurse=True) == sorted(set(TREE) - {"ui", *gone})
    assert (await done(ada, "keyValueDelete", key="ui", recursive=True))["deleted"] == 1
    assert await keys(ada, "ui", recurse=True) == ["ui-x", "ui0", "uiz/a"]
    assert (await done(ada, "keyValueDelete", key="ui", recursive=True))["deleted"] == 0


# what is taken, and how much

REFUSED: list[tuple[dict[str, Any], str, str, list[str]]] = [
    ({"key": ""}, "VALIDATION", "pattern", ["key"]),
    ({"key": "/"}, "VALIDATION", "pattern", ["key"]),
    ({"key": "/a"}, "VALIDATION", "pattern", ["key"]),
    ({"key": "a/"}, "VALIDATION", "pattern", ["key"]),
    ({"key": "a//b"}, "VALIDATION", "pattern", ["key"]),
    ({"key": "a\nb"}, "VALIDATION", "pattern", ["key"]),
    ({"key": "a\x7f"}, "VALIDATION", "pattern", ["key"]),
    ({"key": "a\x9b"}, "VALIDATION", "pattern", ["key"]),
    ({"key": "a\U0010ffff"}, "VALIDATION", "pattern", ["key"]),
    ({"key": "ä" * 513}, "VALIDATION", "max", ["key"]),
    ({"key": "ä" * 257}, "LIMIT_REACHED", "", ["key"]),
    ({"key": "/".join("a" * 17)}, "LIMIT_REACHED", "", ["key"]),
    ({"value": "ä" * (1 + (1 << 15))}, "LIMIT_REACHED", "", ["value"]),
    ({"ttl": "PT0S"}, "VALIDATION", "min", ["ttl"]),
    ({"ttl": "PT0.5S"}, "VALIDATION", "min", ["ttl"]),
    ({"ttl": "P3651D"}, "VALIDATION", "max", ["ttl"]),
    ({"store": "nowhere"}, "VALIDATION", "unknown", ["store"]),
    ({"store": ""}, "VALIDATION", "unknown", ["store"]),
    ({"store": "DEFAULT"}, "VALIDATION", "unknown", ["store"]),
    ({"shared": True, "user": {"username": "ada"}}, "VALIDATION", "exclusive", ["shared"]),
    ({"user": {"username": "nobody"}}, "NOT_FOUND", "", ["user"]),
]


@pytest.mark.parametrize(("given", "code", "constraint", "path"), REFUSED)
async def test_what_cannot_be_is_refused_by_name_of_the_rule(
    ada: Client, given: dict[str, Any], code: str, constraint: str, path: list[str]
) -> None:
    error = await refusal(ada, "keyValueSet", **{"key": "a", "value": "1", **given})
    assert (error["code"], error.get("constraint", ""), error["path"]) == (code, constraint, path)
    if code == "LIMIT_REACHED":
        assert error["used"] > error["limit"]


async def test_the_largest_of_each_is_taken(ada: Client) -> None:
    for key in ("ä" * 256, "/".join("a" * 16)):
        await put(ada, key, "ä" * (1 << 15))
        assert len(await value(ada, key) or "") == 1 << 15
    limit(ada.world, key_value_key=1, key_value_levels=1)
    await put(ada, "ä" * 256, "what is there goes on")
    assert (await done(ada, "keyValueDelete", key="/".join("a" * 16)))["deleted"] == 1


ASKED: list[tuple[str, dict[str, Any]]] = [
    (ONE, {"key": "a//b"}),
    (ONE, {"key": "a\nb"}),
    (ONE, {"key": "a" * 2000}),
    (ONE, {"key": "a", "store": "nowhere"}),
    (ONE, {"key": "a", "shared": True, "user": {"username": "ada"}}),
    (LIST, {"prefix": "a\nb"}),
    (LIST, {"prefix": "a" * 2000}),
    (LIST, {"exact": True}),
    (LIST, {"store": "nowhere"}),
]


async def test_what_no_query_can_ask_for_is_an_error_with_a_code(ada: Client) -> None:
    for document, given in ASKED:
        answer = await ada.raw(document, **given)
        assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT", given


async def test_an_account_has_so_many_entries_and_bytes(ada: Client, clock: Clock) -> None:
    limit(ada.world, key_value_entries=3, key_value_bytes=30, key_value_stores=("default", "b"))
    await put(ada, "1", "x" * 9)
    await put(ada, "2", "x" * 9, store="b")
    await put(ada, "3", "x", ttl="PT1M")
    full = await refusal(ada, "keyValueSet", key="4", value="")
    assert (full["code"], full["path"], full["limit"], full["used"]) == (
        "LIMIT_REACHED", ["key"], 3, 3,
    )  # fmt: skip
    given = {"key": "4", "difference": 1, "createMissing": True}
    assert (await refusal(ada, "keyValueIncrement", **given))["code"] == "LIMIT_REACHED"
    large = await refusal(ada, "keyValueSet", key="1", value="x" * 18)
    assert (large["path"], large["limit"], large["used"]) == (["value"], 30, 22)
    await put(ada, "1", "x" * 17)
    await put(ada, "1", "x" * 16)
    clock.tick(minutes=1)  # what has ended takes no room
    await put(ada, "4", "")
    limit(ada.world, key_value_entries=0, key_value_bytes=0)
    await put(ada, "1", "x" * 16)  # smaller, or as it was, it always may be
    await put(ada, "1", "x")
    assert (await refusal(ada, "keyValueSet", key="1", value="xx"))["path"] == ["value"]


async def test_of_many_at_once_no_more_are_kept_than_may(ada: Client) -> None:
    limit(ada.world, key_value_entries=5)
    answers = await asyncio.gather(
        *(done(ada, "keyValueSet", key=str(n), value="x") for n in range(9))
    )
    assert sum(answer["errors"] == [] for answer in answers) == 5
    assert len(await kept(ada.world)) == 5


# whose they are

MINE, THEIRS, ALL = "mine", "theirs", "all"
READS: dict[str, set[str]] = {  # what each caller reads of what somebody keeps, and writes of it
    "user": {ALL},
    "admin of the domain": {ALL},
    "admin": {THEIRS, ALL},
    "root": {THEIRS, ALL},
}
WRITES: dict[str, dict[str, str]] = {  # what each is told who would
    "user": {THEIRS: "NOT_FOUND", ALL: "ADMIN"},
    "admin of the domain": {THEIRS: "ROOT", ALL: "ADMIN"},
    "admin": {THEIRS: "ROOT", ALL: ""},
    "root": {THEIRS: "", ALL: ""},
}


async def test_what_is_ones_own_and_what_is_shared(ada: Client, root: Client) -> None:
    world, http = ada.world, ada.http
    callers = {
        "user": await make_client(world, http, "bob"),
        "admin of the domain": await make_domain_admin(world, http, "chief", list(AdminPermission)),
        "admin": await make_client(world, http, "over", role=Role.ADMIN),
        "root": root,
    }
    theirs = {"user": {"username": "ada"}}
    own = await put(ada, "a", "private")
    shared = await put(root, "a", "public", shared=True)
    assert (shared["shared"], await value(ada, "a", shared=True)) == (True, "public")
    node = "query ($id: ID!) { node(id: $id) { id } }"
    for name, client in callers.items():
        reads = READS[name]
        for what, given, entry in ((THEIRS, theirs, own), (ALL, {"shared": True}, shared)):
            seen = what in reads
            assert (await value(client, "a", **given) is not None) is seen, (name, what)
            assert await keys(client, recurse=True, **given) == ["a"] * seen, (name, what)
            assert ((await client(node, id=entry["id"]))["node"] is not None) is seen
            for mutation, more in (
                ("keyValueSet", {"value": "1"}),
                ("keyValueIncrement", {"difference": 1}),
                ("keyValueDelete", {}),
            ):
                needed = WRITES[name][what]
                call = {"key": "a", **given, **more}
                if needed:
                    error = await refusal(client, mutation, **call)
                    assert error.get("requires", error["code"]) == needed, (name, what)
                else:
                    assert (await done(client, mutation, **call))["errors"] == []
        own = await put(ada, "a", "private")
        shared = await put(root, "a", "public", shared=True)
    for client in callers.values():
        if client.user.id:
            assert await value(client, "a") is None


async def test_a_key_of_nobody_has_nothing_of_its_own(root: Client) -> None:
    """Its account is 0, and so is the platform: what it sets is not shared by mistake."""
    error = await refusal(root, "keyValueSet", key="a", value="1")
    assert error["code"] == "FORBIDDEN"
    answer = await root.raw(ONE, key="a")
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"


async def test_narrow_credentials_see_and_change_what_their_scope_says(
    ada: Client, root: Client
) -> None:
    over = await make_client(ada.world, ada.http, "over", role=Role.ADMIN)
    await put(root, "a", shared=True)
    entry = await put(ada, "a", "private")

    async def by(client: Client, scope: Scope) -> Client:
        secret = await make_key(
            ada.world, scope, user_id=client.user.id, role=client.user.role, scopes=[scope]
        )
        return Client(ada.http, ada.world, client.user, secret)

    node = "query ($id: ID!) { node(id: $id) { ... on KeyValue { value } } }"
    mail = await by(ada, Scope.MAIL)
    assert (await mail(node, id=entry["id"]))["node"] is None  # by which mail is read, not this
    answer = await mail.raw(ONE, key="a")
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    settings = await by(over, Scope.SETTINGS)
    assert (await put(settings, "mine", "1"))["value"] == "1"
    error = await refusal(settings, "keyValueSet", key="a", value="1", shared=True)
    assert (error["code"], error["requires"]) == ("FORBIDDEN", "MASTER")


async def test_others_values_are_in_no_log(ada: Client, root: Client) -> None:
    who = {"user": {"id": global_ids.encode("User", ada.user.id)}}
    await put(root, "a", "my word", **who)
    await put(root, "a", "my word", shared=True)
    await done(root, "keyValueDelete", key="a", **who)
    logged = await rows(
        root.world,
        "SELECT mutation, target_kind, target_id, before, after FROM admin_log"
        " WHERE mutation LIKE 'keyValue%' ORDER BY id",
    )
    assert [row[:2] for row in logged] == [
        ("keyValueSet", "User"), ("keyValueSet", "KeyValue"), ("keyValueDelete", "User"),
    ]  # fmt: skip
    assert [row[2] for row in logged if row[1] == "User"] == [ada.user.id] * 2
    assert "my word" not in str(logged)
    streams = await rows(
        root.world, "SELECT stream_id FROM changes WHERE kind = 'KEY_VALUE_CHANGED'"
    )
    assert sorted(key for (key,) in streams) == [PLATFORM, ada.user.id, ada.user.id]
