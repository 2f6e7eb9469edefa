"""Settings that are stored: typed, bounded, with a default to go back to and a history."""

from dataclasses import fields
from typing import Any

import pytest
from sqlalchemy import func, insert, select
from sqlmodel import col

from mail.consistency.all_checks import check_consistency
from mail.maintenance import housekeeping
from models.admin.admin_log import AdminLogEntry
from models.admin.settings import SettingChange, SettingValue
from models.domains.tables import Domain
from models.events.journal import PLATFORM, Change, ChangeKind, Stream
from models.runtime.environment import Environment
from models.runtime.options import Options
from models.store.columns import select_columns
from models.users.roles import Role, Scope
from resolvers.admin import settings as admin_settings
from resolvers.admin.setting_definitions import DEFINITIONS, apply_stored_values
from tests.conftest import Client, Clock, make_client, make_key, make_user
from tests.support.operations.setting_operations import MOST, SET, UNSET, put, refused, stored

ONE = "query ($key: String!) { setting(key: $key) { key value default type custom } }"
ALL = "query ($filter: String) { settings(filter: $filter) { key value custom type } }"
HISTORY = """query ($key: String!, $first: Int, $after: String, $last: Int, $before: String) {
  setting(key: $key) { history(first: $first, after: $after, last: $last, before: $before) {
    totalCount nodes { id key at actor before after reason }
    pageInfo { hasNextPage startCursor endCursor } } } }"""


# what there is


def test_every_setting_has_an_option_and_takes_what_is_in_force() -> None:
    known = {each.name for each in fields(Options)}
    usual = Options()
    for one in DEFINITIONS.values():
        assert one.option in known
        plain = one.json_from_options(usual)
        assert one.parse(plain) == getattr(usual, one.option)
        assert one.name
        assert one.description.endswith(".")
        assert not one.restart_required
    assert len({one.option for one in DEFINITIONS.values()}) == len(DEFINITIONS)
    assert list(DEFINITIONS) == sorted(DEFINITIONS)


async def test_settings_are_listed_by_key_with_their_defaults(root: Client) -> None:
    found = (await root(ALL))["settings"]
    assert [each["key"] for each in found] == sorted(DEFINITIONS)
    assert not any(each["custom"] for each in found)
    values = {each["key"]: (each["value"], each["type"]) for each in found}
    assert values[MOST] == (400, "number")
    assert values["quota.default"] == (1 << 30, "size")
    assert values["auth.tokenTtl"] == ("P14D", "duration")
    assert values["journal.retention"] == ("P30D", "duration")
    assert values["domains.default"] == (None, "string")
    for part in ("retention", "RETENTION"):
        found = (await root(ALL, filter=part))["settings"]
        assert [each["key"] for each in found] == [key for key in DEFINITIONS if "retention" in key]
    assert (await root(ALL, filter="%"))["settings"] == []
    answer = await root.raw(ALL, filter="x" * 10_000)
    assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


@pytest.mark.parametrize("key", ["", "nothing", "custom.", "custom.mine", "const:max:rcpt_to"])
async def test_an_unknown_setting_is_null(root: Client, key: str) -> None:
    assert await root(ONE, key=key) == {"setting": None}


# what is taken
TAKEN: list[tuple[str, Any, Any]] = [
    (MOST, 50, 50),
    (MOST, "50", 50),
    ("quota.default", "3 GiB", 3 << 30),
    ("quota.default", 0, 0),
    ("quota.default", "16 TiB", 1 << 44),
    ("auth.tokenTtl", "PT20M", "PT1200S"),
    ("auth.tokenTtl", "P1W", "P7D"),
    ("journal.retention", "PT48H", "P2D"),
    ("undo.window", "PT0S", "PT0S"),
    ("domains.default", "Example.ORG", "example.org"),
    ("domains.default", "xn--bcher-kva.example", "bücher.example"),
    ("domains.default", None, None),
    ("custom.a", "text", "text"),
    ("custom.a-b.C_3", [1, 2.5, True, "x"], [1, 2.5, True, "x"]),
    ("custom.a", False, False),
    ("custom.a", [], []),
]


@pytest.mark.parametrize(("key", "given", "value"), TAKEN)
async def test_a_value_is_kept_in_one_way_of_writing(
    root: Client, key: str, given: Any, value: Any
) -> None:
    made = await put(root, key, given)
    assert (made["value"], made["custom"], type(made["value"])) == (value, True, type(value))
    found = (await root(ONE, key=key))["setting"]
    assert (found["value"], found["custom"]) == (value, True)
    assert await stored(root.world) == {key: value}
    if key in DEFINITIONS:
        _, useless = apply_stored_values(root.world.initial_options, await stored(root.world))
        assert useless == []


REFUSED: list[tuple[str, Any, str]] = [
    (MOST, 0, "min"),
    (MOST, -5, "min"),
    (MOST, 100_001, "max"),
    (MOST, 2**63, "type"),
    (MOST, 1.5, "type"),
    (MOST, True, "type"),
    (MOST, "many", "type"),
    (MOST, None, "type"),
    (MOST, [5], "type"),
    (MOST, {"value": 5}, "type"),
    ("quota.default", -1, "type"),
    ("quota.default", 1 + (1 << 44), "max"),
    ("quota.default", "3 GiBi", "type"),
    ("message.max", 1, "min"),
    ("message.max", "1 TiB", "max"),
    ("auth.tokenTtl", "PT59S", "min"),
    ("auth.tokenTtl", "P9999Y", "max"),
    ("auth.tokenTtl", "-P1D", "type"),
    ("auth.tokenTtl", 14, "type"),
    ("auth.tokenTtl", "P", "type"),
    ("journal.retention", "PT36H", "pattern"),
    ("journal.retention", "PT0S", "min"),
    ("domains.default", "", "domain"),
    ("domains.default", "a b", "domain"),
    ("domains.default", "x" * 10_000, "domain"),
    ("domains.default", 5, "type"),
    ("nothing", 5, "unknown"),
    ("const:max:rcpt_to", 5, "unknown"),
    ("SUBMISSION.MAXRECIPIENTS", 5, "unknown"),
    ("custom", 5, "unknown"),
    ("custom.", 5, "unknown"),
    ("custom..a", 5, "unknown"),
    ("custom.ä", 5, "unknown"),
    ("custom." + "a" * 10_000, 5, "unknown"),
    ("custom.a", None, "type"),
    ("custom.a", {"a": 1}, "type"),
    ("custom.a", [[1]], "type"),
    ("custom.a", 2**63, "type"),
    ("custom.a", "x" * 5000, "max"),
    ("custom.a", [0] * 101, "max"),
]


@pytest.mark.parametrize(("key", "value", "constraint"), REFUSED)
async def test_what_a_setting_does_not_take_is_refused_by_name_of_the_rule(
    root: Client, key: str, value: Any, constraint: str
) -> None:
    error = await refused(root, key, value)
    assert (error["__typename"], error["constraint"]) == ("ValidationError", constraint)
    assert error["path"] == (["key"] if constraint == "unknown" else ["value"])


async def test_a_value_must_be_given(root: Client) -> None:
    document = 'mutation { settingSet(input: {key: "domains.default"}) { errors { path code } } }'
    done = (await root(document))["settingSet"]
    assert done["errors"] == [{"path": ["value"], "code": "VALIDATION"}]


async def test_there_are_so_many_of_ones_own(root: Client) -> None:
    now = root.world.now()
    rows = [
        {"key": f"custom.n{n}", "value": {"value": n}, "updated_at": now}
        for n in range(admin_settings.MAX_CUSTOM_SETTINGS)
    ]
    async with root.world.database.engine.begin() as connection:
        await connection.execute(insert(SettingValue), rows)
    error = await refused(root, "custom.more", 1)
    assert error["__typename"] == "LimitReachedError"
    await put(root, "custom.n7", "changed")
    await put(root, MOST, 7)


# back to the default


async def test_a_deletion_brings_the_default_back_and_may_be_repeated(root: Client) -> None:
    await put(root, MOST, 50)
    await put(root, "custom.a", 1)
    keys = ["undo.window", MOST, "custom.a", MOST]
    done = (await root(UNSET, keys=keys))["settingDelete"]
    assert done["errors"] == []
    assert [(each["key"], each["value"]) for each in done["settings"]] == [
        ("undo.window", "PT600S"),
        (MOST, 400),
    ]
    assert done["warnings"] == [{"code": "DEFAULT_ALREADY", "path": ["keys", "0"]}]
    assert await stored(root.world) == {}
    assert await root(ONE, key="custom.a") == {"setting": None}
    changes = await root.world.database.read(select(func.count()).select_from(SettingChange))
    again = (await root(UNSET, keys=keys))["settingDelete"]
    assert [each["path"] for each in again["warnings"]] == [["keys", str(n)] for n in range(4)]
    assert (
        await root.world.database.read(select(func.count()).select_from(SettingChange)) == changes
    )


async def test_a_deletion_is_whole_or_nothing(root: Client) -> None:
    await put(root, MOST, 50)
    done = (await root(UNSET, keys=[MOST, "nothing"]))["settingDelete"]
    (error,) = done["errors"]
    assert (error["constraint"], error["path"], error["index"]) == ("unknown", ["keys"], 1)
    done = (await root(UNSET, keys=[MOST] * 101))["settingDelete"]
    assert done["errors"][0]["constraint"] == "max"
    assert await stored(root.world) == {MOST: 50}


# what is counted by it


async def allocated(world: Environment) -> dict[str, int]:
    asked = select(col(Domain.name), col(Domain.quota_allocated))
    return {row.name: row.quota_allocated for row in await world.database.read(asked)}


async def test_another_default_quota_is_counted_in_the_domains(
    root: Client, ada: Client, bob: Client
) -> None:
    world, gib = root.world, 1 << 30
    await make_user(world, "own", quota=5 * gib)
    at = world.now()
    async with world.write_session() as session:
        row: dict[str, Any] = {"created_at": at, "updated_at": at, "default_user_quota": gib}
        session.add(Domain(id=7, name="far.example", **row))
        session.add(Stream(id=7))
    assert await allocated(world) == {"example.org": 7 * gib, "far.example": 0}
    for value, total in (("3 GiB", 11 * gib), (0, 5 * gib), ("2 GiB", 9 * gib)):
        await put(root, "quota.default", value)
        assert (await allocated(world))["example.org"] == total
        report = await check_consistency(world)
        assert report.findings == []
    await root(UNSET, keys=["quota.default"])
    assert await allocated(world) == {"example.org": 7 * gib, "far.example": 0}
    limits = "{ viewer { user { limits { quota { allowed } } } } }"
    for client in (ada, bob):
        assert (await client(limits))["viewer"]["user"]["limits"]["quota"]["allowed"] == gib


# what is told of it


async def test_history_tells_who_when_what_and_why(root: Client, ada: Client, clock: Clock) -> None:
    chief = await make_client(root.world, root.http, "chief", role=Role.ADMIN)
    await put(root, MOST, 50, reason="spam")
    clock.tick(hours=1)
    await put(chief, MOST, 50)  # no change, no history
    await put(chief, MOST, 60)
    clock.tick(hours=1)
    await root(UNSET, keys=[MOST])
    await put(root, "mailboxes.max", 77)
    history = (await root(HISTORY, key=MOST))["setting"]["history"]
    told = [(n["actor"], n["before"], n["after"], n["reason"]) for n in history["nodes"]]
    assert told == [
        ("key root", 60, None, None),
        ("chief", 50, 60, None),
        ("key root", None, 50, "spam"),
    ]
    assert history["totalCount"] == 3
    first = (await root(HISTORY, key=MOST, first=1))["setting"]["history"]
    rest = await root(HISTORY, key=MOST, first=9, after=first["pageInfo"]["endCursor"])
    assert [n["after"] for n in rest["setting"]["history"]["nodes"]] == [60, 50]
    last = (await root(HISTORY, key=MOST, last=1))["setting"]["history"]
    back = await root(HISTORY, key=MOST, last=9, before=last["pageInfo"]["startCursor"])
    assert [n["after"] for n in back["setting"]["history"]["nodes"]] == [None, 60]
    answer = await root.raw(HISTORY, key="mailboxes.max", after=first["pageInfo"]["endCursor"])
    assert answer["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}
    node = "query ($id: ID!) { node(id: $id) { __typename } }"
    key = history["nodes"][0]["id"]
    assert (await chief(node, id=key))["node"] == {"__typename": "SettingChange"}
    assert (await ada(node, id=key))["node"] is None
    clock.tick(days=365)
    assert (await housekeeping.run_round(root.world, sweep=False)).settings == 4


async def test_a_change_is_told_in_the_journal_and_in_the_administrative_log(root: Client) -> None:
    await put(root, MOST, 50, reason="spam", sessionId="panel")
    await put(root, "custom.smtpPassword", "hunter2")
    asked = select(*select_columns(Change)).where(
        col(Change.stream_id) == PLATFORM, col(Change.kind) == ChangeKind.SETTING_CHANGED
    )
    rows = await root.world.database.read(asked.order_by(col(Change.last)))
    assert [(row.facts["key"], row.origin) for row in rows] == [
        ([MOST], "panel"),
        (["custom.smtpPassword"], None),
    ]
    entries = select(*select_columns(AdminLogEntry)).order_by(col(AdminLogEntry.id))
    told = [
        (row.mutation, row.before, row.after, row.reason)
        for row in await root.world.database.read(entries)
    ]
    assert told == [
        ("settingSet", None, {MOST: 50}, "spam"),
        ("settingSet", None, {"custom.smtpPassword": "(hidden)"}, None),
    ]
    again = (await root(ONE, key="custom.smtpPassword"))["setting"]
    assert again["value"] == "hunter2"


async def test_many_settings_cost_no_more_statements_than_few(
    root: Client, statements: list[str]
) -> None:
    document = "{ settings { key history(first: 2) { totalCount nodes { after actor } } } }"

    async def cost() -> int:
        del statements[:]
        await root(document)
        return len([sent for sent in statements if "api_keys" not in sent])

    costs = [await cost()]
    for n in range(20):
        await put(root, f"custom.n{n}", n)
        await put(root, f"custom.n{n}", -n - 1)
    assert [await cost(), await cost()] == costs * 2


async def test_nobody_below_an_administrator_sees_or_changes_one(
    root: Client, ada: Client, world: Environment
) -> None:
    await put(root, "custom.a", "visible")
    chief = await make_client(world, root.http, "chief", role=Role.DOMAIN_ADMIN)
    secret = await make_key(world, "mail", role=Role.ADMIN, scopes=[Scope.SETTINGS])
    narrow = Client(root.http, world, root.user, secret)
    before = await stored(world)
    for client in (ada, chief, narrow):
        for document, given in (
            (ONE, {"key": "custom.a"}),
            (ALL, {}),
            (HISTORY, {"key": "custom.a"}),
            (SET, {"key": "custom.a", "value": 1}),
            (UNSET, {"keys": ["custom.a"]}),
        ):
            answer = await client.raw(document, **given)
            assert "forbidden" in str(answer).lower(), document
            assert "visible" not in str(answer)
    assert await stored(world) == before


async def test_the_types_of_ones_own_are_told(root: Client) -> None:
    for n, (value, kind) in enumerate(
        (("a", "string"), (1, "number"), (1.5, "number"), (True, "boolean"), ([1], "list"))
    ):
        assert (await put(root, f"custom.n{n}", value))["type"] == kind
