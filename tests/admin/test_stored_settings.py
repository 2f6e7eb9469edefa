"""Stored settings: types, limits, defaults, history and rights."""

from dataclasses import fields
from typing import Any

from sqlalchemy import func, insert, select
from sqlmodel import col

from mail.consistency.all_checks import check_consistency
from mail.maintenance import housekeeping
from models.admin.audit_log import AuditLogEntry
from models.admin.settings import SettingHistoryEntry, SettingValue
from models.domains.tables import Domain
from models.events.event_types import EventType
from models.events.journal import PLATFORM, Change, Stream
from models.runtime.environment import Environment
from models.runtime.options import Options
from models.store.columns import select_columns
from models.users.roles import Role, Scope
from resolvers.admin import settings as admin_settings
from resolvers.admin.setting_definitions import DEFINITIONS
from resolvers.admin.setting_values import options_with_stored_values
from tests.conftest import GraphQLClient, ManualClock, make_api_key, make_client, make_user
from tests.support.case_loop import each_case
from tests.support.operations.platform.setting_operations import (
    MAX_RECIPIENTS_KEY,
    SETTING_DELETE,
    SETTING_SET,
    expect_refused_setting,
    load_stored_settings,
    set_setting,
    setting_refs,
)
from tests.support.schema.error_paths import field_path, item_index

SETTING_QUERY = (
    "query ($key: String!) { setting(by: {key: $key}) { key value default type custom } }"
)
SETTINGS_QUERY = """query ($filter: SettingFilter) { settings(filter: $filter, first: 250) {
  nodes { key value custom type } } }"""
SETTING_PAGES_QUERY = """query ($filter: SettingFilter, $orderBy: SettingOrder! = KEY_ASC,
    $first: Int, $after: String, $last: Int, $before: String) {
  settings(filter: $filter, orderBy: $orderBy, first: $first, after: $after, last: $last,
      before: $before) {
    totalCount nodes { key }
    pageInfo { hasNextPage hasPreviousPage startCursor endCursor } } }"""
HISTORY_QUERY = """query ($key: String!, $orderBy: SettingHistoryEntryOrder! = AT_DESC,
    $first: Int, $after: String, $last: Int, $before: String) {
  setting(by: {key: $key}) {
    history(orderBy: $orderBy, first: $first, after: $after, last: $last, before: $before) {
    totalCount nodes { id key at actor before after reason }
    pageInfo { hasNextPage startCursor endCursor } } } }"""


def test_every_setting_has_an_option_and_parses_its_default() -> None:
    option_names = {field.name for field in fields(Options)}
    defaults = Options()
    for definition in DEFINITIONS.values():
        assert definition.option in option_names
        json_value = definition.json_from_options(defaults)
        assert definition.parse_value(json_value) == getattr(defaults, definition.option)
        assert definition.name
        assert definition.description.endswith(".")
        assert not definition.restart_required
    assert len({definition.option for definition in DEFINITIONS.values()}) == len(DEFINITIONS)
    assert list(DEFINITIONS) == sorted(DEFINITIONS)


async def test_settings_are_listed_by_key_with_defaults(root: GraphQLClient) -> None:
    settings = (await root(SETTINGS_QUERY))["settings"]["nodes"]
    assert [setting["key"] for setting in settings] == sorted(DEFINITIONS)
    assert not any(setting["custom"] for setting in settings)
    values = {setting["key"]: (setting["value"], setting["type"]) for setting in settings}
    assert values[MAX_RECIPIENTS_KEY] == (400, "NUMBER")
    assert values["users.defaultQuota"] == (1 << 30, "SIZE")
    assert values["tokens.idleTimeout"] == ("P14D", "DURATION")
    assert values["journal.retention"] == ("P30D", "DURATION")
    assert values["users.defaultDomain"] == (None, "STRING")
    for part in ("retention", "RETENTION"):
        settings = (await root(SETTINGS_QUERY, filter={"query": part}))["settings"]["nodes"]
        assert [setting["key"] for setting in settings] == [
            key for key in DEFINITIONS if "retention" in key.casefold()
        ]
    assert (await root(SETTINGS_QUERY, filter={"query": "%"}))["settings"]["nodes"] == []
    answer = await root.execute(SETTINGS_QUERY, filter={"query": "x" * 10_000})
    assert answer["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_unknown_setting_is_null(root: GraphQLClient) -> None:
    cases: list[str] = ["", "nothing", "custom.", "custom.mine", "const:max:rcpt_to"]
    for case in each_case(cases):
        with case as key:
            assert await root(SETTING_QUERY, key=key) == {"setting": None}


VALID_VALUES: list[tuple[str, Any, Any]] = [
    (MAX_RECIPIENTS_KEY, 50, 50),
    (MAX_RECIPIENTS_KEY, "51", 51),
    ("users.defaultQuota", "3 GiB", 3 << 30),
    ("users.defaultQuota", 0, 0),
    ("users.defaultQuota", "16 TiB", 1 << 44),
    ("tokens.idleTimeout", "PT20M", "PT1200S"),
    ("tokens.idleTimeout", "P1W", "P7D"),
    ("journal.retention", "PT48H", "P2D"),
    ("undo.window", "PT0S", "PT0S"),
    ("users.defaultDomain", "Example.ORG", "example.org"),
    ("users.defaultDomain", "xn--bcher-kva.example", "bücher.example"),
    ("users.defaultDomain", None, None),
    ("custom.a", "text", "text"),
    ("custom.a-b.C_3", [1, 2.5, True, "x"], [1, 2.5, True, "x"]),
    ("custom.a", False, False),
    ("custom.a", [], []),
]


async def test_value_is_stored_in_normal_form(root: GraphQLClient) -> None:
    for case in each_case(VALID_VALUES):
        with case as (key, arguments, value):
            stored_before = await load_stored_settings(root.environment)
            setting_payload = await set_setting(root, key, arguments)
            assert (
                setting_payload["value"],
                setting_payload["custom"],
                type(setting_payload["value"]),
            ) == (value, True, type(value))
            setting = (await root(SETTING_QUERY, key=key))["setting"]
            assert (setting["value"], setting["custom"]) == (value, True)
            assert await load_stored_settings(root.environment) == {**stored_before, key: value}
            if key in DEFINITIONS:
                _, invalid_keys = options_with_stored_values(
                    root.environment.initial_options, await load_stored_settings(root.environment)
                )
                assert invalid_keys == []


INVALID_VALUES: list[tuple[str, Any, str]] = [
    (MAX_RECIPIENTS_KEY, 0, "MIN"),
    (MAX_RECIPIENTS_KEY, -5, "MIN"),
    (MAX_RECIPIENTS_KEY, 100_001, "MAX"),
    (MAX_RECIPIENTS_KEY, 2**63, "TYPE"),
    (MAX_RECIPIENTS_KEY, 1.5, "TYPE"),
    (MAX_RECIPIENTS_KEY, True, "TYPE"),
    (MAX_RECIPIENTS_KEY, "many", "TYPE"),
    (MAX_RECIPIENTS_KEY, None, "TYPE"),
    (MAX_RECIPIENTS_KEY, [5], "TYPE"),
    (MAX_RECIPIENTS_KEY, {"value": 5}, "TYPE"),
    ("users.defaultQuota", -1, "TYPE"),
    ("users.defaultQuota", 1 + (1 << 44), "MAX"),
    ("users.defaultQuota", "3 GiBi", "TYPE"),
    ("message.maxSize", 1, "MIN"),
    ("message.maxSize", "1 TiB", "MAX"),
    ("tokens.idleTimeout", "PT59S", "MIN"),
    ("tokens.idleTimeout", "P9999Y", "MAX"),
    ("tokens.idleTimeout", "-P1D", "TYPE"),
    ("tokens.idleTimeout", 14, "TYPE"),
    ("tokens.idleTimeout", "P", "TYPE"),
    ("journal.retention", "PT36H", "PATTERN"),
    ("journal.retention", "PT0S", "MIN"),
    ("users.defaultDomain", "", "DOMAIN"),
    ("users.defaultDomain", "a b", "DOMAIN"),
    ("users.defaultDomain", "x" * 10_000, "DOMAIN"),
    ("users.defaultDomain", 5, "TYPE"),
    ("nothing", 5, "UNKNOWN"),
    ("const:max:rcpt_to", 5, "UNKNOWN"),
    ("SUBMISSION.MAXRECIPIENTS", 5, "UNKNOWN"),
    ("custom", 5, "UNKNOWN"),
    ("custom.", 5, "UNKNOWN"),
    ("custom..a", 5, "UNKNOWN"),
    ("custom.ä", 5, "UNKNOWN"),
    ("custom." + "a" * 10_000, 5, "UNKNOWN"),
    ("custom.a", None, "TYPE"),
    ("custom.a", {"a": 1}, "TYPE"),
    ("custom.a", [[1]], "TYPE"),
    ("custom.a", 2**63, "TYPE"),
    ("custom.a", "x" * 5000, "MAX"),
    ("custom.a", [0] * 101, "MAX"),
]


async def test_invalid_value_is_refused_by_rule(root: GraphQLClient) -> None:
    for case in each_case(INVALID_VALUES):
        with case as (key, value, constraint):
            error = await expect_refused_setting(root, key, value)
            assert (error["__typename"], error["constraint"]) == ("ValidationError", constraint)
            assert error["path"] == (["key"] if constraint == "UNKNOWN" else ["value"])


async def test_value_is_required(root: GraphQLClient) -> None:
    document = (
        'mutation { settingSet(input: {key: "users.defaultDomain"}) { errors { path code } } }'
    )
    payload = (await root(document))["settingSet"]
    assert payload["errors"] == [{"path": ["value"], "code": "VALIDATION"}]


async def test_number_of_custom_settings_is_limited(root: GraphQLClient) -> None:
    now = root.environment.now()
    rows = [
        {"key": f"custom.n{n}", "value": {"value": n}, "updated_at": now}
        for n in range(admin_settings.MAX_CUSTOM_SETTINGS)
    ]
    async with root.environment.database.engine.begin() as connection:
        await connection.execute(insert(SettingValue), rows)
    error = await expect_refused_setting(root, "custom.more", 1)
    assert error["__typename"] == "LimitReachedError"
    await set_setting(root, "custom.n7", "changed")
    await set_setting(root, MAX_RECIPIENTS_KEY, 7)


async def test_delete_restores_the_default_and_is_idempotent(root: GraphQLClient) -> None:
    await set_setting(root, MAX_RECIPIENTS_KEY, 50)
    await set_setting(root, "custom.a", 1)
    keys = ["undo.window", MAX_RECIPIENTS_KEY, "custom.a", MAX_RECIPIENTS_KEY]
    payload = (await root(SETTING_DELETE, settings=setting_refs(*keys)))["settingDelete"]
    assert payload["errors"] == []
    assert [(item["key"], item["value"]) for item in payload["settings"]] == [
        ("undo.window", "PT600S"),
        (MAX_RECIPIENTS_KEY, 400),
    ]
    assert payload["warnings"] == [{"code": "DEFAULT_ALREADY", "path": ["settings", "0"]}]
    assert await load_stored_settings(root.environment) == {}
    assert await root(SETTING_QUERY, key="custom.a") == {"setting": None}
    changes = await root.environment.database.read(
        select(func.count()).select_from(SettingHistoryEntry)
    )
    repeated = (await root(SETTING_DELETE, settings=setting_refs(*keys)))["settingDelete"]
    assert [item["path"] for item in repeated["warnings"]] == [
        ["settings", str(n)] for n in range(4)
    ]
    assert (
        await root.environment.database.read(select(func.count()).select_from(SettingHistoryEntry))
        == changes
    )


async def test_delete_is_all_or_nothing(root: GraphQLClient) -> None:
    await set_setting(root, MAX_RECIPIENTS_KEY, 50)
    payload = (await root(SETTING_DELETE, settings=setting_refs(MAX_RECIPIENTS_KEY, "nothing")))[
        "settingDelete"
    ]
    (error,) = payload["errors"]
    assert (error["constraint"], field_path(error), item_index(error)) == (
        "UNKNOWN",
        ["settings"],
        1,
    )
    payload = (await root(SETTING_DELETE, settings=setting_refs(MAX_RECIPIENTS_KEY) * 101))[
        "settingDelete"
    ]
    assert payload["errors"][0]["constraint"] == "MAX"
    assert await load_stored_settings(root.environment) == {MAX_RECIPIENTS_KEY: 50}


async def load_allocated_quotas(environment: Environment) -> dict[str, int]:
    statement = select(col(Domain.name), col(Domain.quota_allocated))
    return {row.name: row.quota_allocated for row in await environment.database.read(statement)}


async def test_default_quota_updates_allocated_quota_of_domains(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    environment, gib = root.environment, 1 << 30
    await make_user(environment, "own", quota=5 * gib)
    now = environment.now()
    async with environment.write_session() as session:
        domain_columns: dict[str, Any] = {
            "created_at": now,
            "updated_at": now,
            "default_user_quota": gib,
        }
        session.add(Domain(id=7, name="far.example", **domain_columns))
        session.add(Stream(id=7))
    assert await load_allocated_quotas(environment) == {"example.org": 7 * gib, "far.example": 0}
    for value, total in (("3 GiB", 11 * gib), (0, 5 * gib), ("2 GiB", 9 * gib)):
        await set_setting(root, "users.defaultQuota", value)
        assert (await load_allocated_quotas(environment))["example.org"] == total
        report = await check_consistency(environment)
        assert report.findings == []
    await root(SETTING_DELETE, settings=setting_refs("users.defaultQuota"))
    assert await load_allocated_quotas(environment) == {"example.org": 7 * gib, "far.example": 0}
    document = "{ viewer { user { limits { quota { limit } } } } }"
    for client in (ada, bob):
        assert (await client(document))["viewer"]["user"]["limits"]["quota"]["limit"] == gib


async def test_history_shows_actor_values_and_reason(
    root: GraphQLClient, ada: GraphQLClient, clock: ManualClock
) -> None:
    admin = await make_client(root.environment, root.http, "chief", role=Role.ADMIN)
    await set_setting(root, MAX_RECIPIENTS_KEY, 50, reason="spam")
    clock.tick(hours=1)
    await set_setting(admin, MAX_RECIPIENTS_KEY, 50)  # no change and no history entry
    await set_setting(admin, MAX_RECIPIENTS_KEY, 60)
    clock.tick(hours=1)
    await root(SETTING_DELETE, settings=setting_refs(MAX_RECIPIENTS_KEY))
    await set_setting(root, "mailboxes.maxPerUser", 77)
    history = (await root(HISTORY_QUERY, key=MAX_RECIPIENTS_KEY))["setting"]["history"]
    changes = [(n["actor"], n["before"], n["after"], n["reason"]) for n in history["nodes"]]
    assert changes == [
        ("key root", 60, None, None),
        ("chief", 50, 60, None),
        ("key root", None, 50, "spam"),
    ]
    assert history["totalCount"] == 3
    oldest_first = await root(HISTORY_QUERY, key=MAX_RECIPIENTS_KEY, orderBy="AT_ASC")
    assert oldest_first["setting"]["history"]["nodes"] == history["nodes"][::-1]
    first = (await root(HISTORY_QUERY, key=MAX_RECIPIENTS_KEY, first=1))["setting"]["history"]
    rest = await root(
        HISTORY_QUERY, key=MAX_RECIPIENTS_KEY, first=9, after=first["pageInfo"]["endCursor"]
    )
    assert [n["after"] for n in rest["setting"]["history"]["nodes"]] == [60, 50]
    last = (await root(HISTORY_QUERY, key=MAX_RECIPIENTS_KEY, last=1))["setting"]["history"]
    previous = await root(
        HISTORY_QUERY, key=MAX_RECIPIENTS_KEY, last=9, before=last["pageInfo"]["startCursor"]
    )
    assert [n["after"] for n in previous["setting"]["history"]["nodes"]] == [None, 60]
    answer = await root.execute(
        HISTORY_QUERY, key="mailboxes.maxPerUser", after=first["pageInfo"]["endCursor"]
    )
    assert answer["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}
    node = "query ($id: ID!) { node(id: $id) { __typename } }"
    change_id = history["nodes"][0]["id"]
    assert (await admin(node, id=change_id))["node"] == {"__typename": "SettingHistoryEntry"}
    assert (await ada(node, id=change_id))["node"] is None
    clock.tick(days=365)
    assert (await housekeeping.run_housekeeping_round(root.environment, sweep=False)).settings == 4


async def test_change_is_in_the_journal_and_the_audit_log(root: GraphQLClient) -> None:
    await set_setting(root, MAX_RECIPIENTS_KEY, 50, reason="spam", sessionId="panel")
    await set_setting(root, "custom.smtpPassword", "hunter2")
    statement = select(*select_columns(Change)).where(
        col(Change.stream_id) == PLATFORM, col(Change.type) == EventType.SETTING_UPDATED
    )
    rows = await root.environment.database.read(statement.order_by(col(Change.last)))
    assert [(row.facts["key"], row.origin) for row in rows] == [
        ([MAX_RECIPIENTS_KEY], "panel"),
        (["custom.smtpPassword"], None),
    ]
    log_statement = select(*select_columns(AuditLogEntry)).order_by(col(AuditLogEntry.id))
    log_entries = [
        (row.mutation, row.before, row.after, row.reason)
        for row in await root.environment.database.read(log_statement)
    ]
    assert log_entries == [
        ("settingSet", None, {MAX_RECIPIENTS_KEY: 50}, "spam"),
        ("settingSet", None, {"custom.smtpPassword": "(hidden)"}, None),
    ]
    setting = (await root(SETTING_QUERY, key="custom.smtpPassword"))["setting"]
    assert setting["value"] == "hunter2"


async def test_settings_have_pages_in_both_directions(root: GraphQLClient) -> None:
    page = (await root(SETTING_PAGES_QUERY, first=7))["settings"]
    assert page["totalCount"] == len(DEFINITIONS)
    assert [node["key"] for node in page["nodes"]] == sorted(DEFINITIONS)[:7]
    assert page["pageInfo"]["hasNextPage"]
    assert not page["pageInfo"]["hasPreviousPage"]
    next_page = (await root(SETTING_PAGES_QUERY, first=2, after=page["pageInfo"]["endCursor"]))[
        "settings"
    ]
    assert [node["key"] for node in next_page["nodes"]] == sorted(DEFINITIONS)[7:9]
    last_page = (
        await root(SETTING_PAGES_QUERY, last=3, before=next_page["pageInfo"]["startCursor"])
    )["settings"]
    assert [node["key"] for node in last_page["nodes"]] == sorted(DEFINITIONS)[4:7]
    descending, keys = {"orderBy": "KEY_DESC"}, sorted(DEFINITIONS, reverse=True)
    page = (await root(SETTING_PAGES_QUERY, **descending, first=3))["settings"]
    assert [node["key"] for node in page["nodes"]] == keys[:3]
    cursor = page["pageInfo"]["endCursor"]
    page = (await root(SETTING_PAGES_QUERY, **descending, first=2, after=cursor))["settings"]
    assert [node["key"] for node in page["nodes"]] == keys[3:5]
    page = (await root(SETTING_PAGES_QUERY, **descending, last=1, before=cursor))["settings"]
    assert [node["key"] for node in page["nodes"]] == keys[1:2]
    found = (await root(SETTING_PAGES_QUERY, **descending, filter={"query": "undo"}))["settings"]
    expected = [key for key in keys if "undo" in key.casefold()]
    assert ([node["key"] for node in found["nodes"]], found["totalCount"]) == (
        expected,
        len(expected),
    )
    answer = await root.execute(SETTING_PAGES_QUERY, first=1, after=cursor)
    assert answer["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}
    answer = await root.execute(SETTING_PAGES_QUERY, first=1, after="x")
    assert answer["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}


async def test_list_needs_a_constant_number_of_statements(
    root: GraphQLClient, statements: list[str]
) -> None:
    document = """{ settings(first: 250) { nodes { key
      history(first: 2) { totalCount nodes { after actor } } } } }"""

    async def cost() -> int:
        del statements[:]
        await root(document)
        return len([statement for statement in statements if "api_keys" not in statement])

    statement_counts = [await cost()]
    for n in range(20):
        await set_setting(root, f"custom.n{n}", n)
        await set_setting(root, f"custom.n{n}", -n - 1)
    assert [await cost(), await cost()] == statement_counts * 2


async def test_only_administrators_read_or_change_settings(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    await set_setting(root, "custom.a", "visible")
    domain_admin = await make_client(environment, root.http, "chief", role=Role.DOMAIN_ADMIN)
    secret = await make_api_key(environment, "mail", role=Role.ADMIN, scopes=[Scope.SETTINGS])
    scoped_client = GraphQLClient(root.http, environment, root.user, secret)
    before = await load_stored_settings(environment)
    for client in (ada, domain_admin, scoped_client):
        for document, arguments in (
            (SETTING_QUERY, {"key": "custom.a"}),
            (SETTINGS_QUERY, {}),
            (HISTORY_QUERY, {"key": "custom.a"}),
            (SETTING_SET, {"key": "custom.a", "value": 1}),
            (SETTING_DELETE, {"settings": setting_refs("custom.a")}),
        ):
            answer = await client.execute(document, **arguments)
            assert "forbidden" in str(answer).lower(), document
            assert "visible" not in str(answer)
    assert await load_stored_settings(environment) == before


async def test_custom_setting_has_the_type_of_its_value(root: GraphQLClient) -> None:
    for n, (value, kind) in enumerate(
        (("a", "STRING"), (1, "NUMBER"), (1.5, "NUMBER"), (True, "BOOLEAN"), ([1], "LIST"))
    ):
        assert (await set_setting(root, f"custom.n{n}", value))["type"] == kind
