"""Query.metrics: counters of each kind of key, filters, pages, roles, resets and bad input."""

from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from graph.types import global_ids
from mail.storage.blobs.object_stores import FolderStore
from models.metrics.names import GAUGES, NAMES_BY_TYPE, MetricName, MetricSetKind
from models.metrics.usage_recorder import UsageCaller, UsageRecorder
from models.observability import metrics as prometheus_metrics
from models.runtime.environment import Environment
from models.store.object_store import ObjectRange
from models.users.roles import Role
from resolvers.auth import sign_in
from resolvers.metrics.resets import apply_resets, load_reset_times, skip_stored_resets
from tests.conftest import GraphQLClient, ManualClock, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.submission_client import PASSWORD
from tests.support.operations.platform.metric_operations import (
    METRICS,
    METRICS_RESET,
    counters_by_key,
    list_metrics,
    other_process,
)
from tests.support.stores.recorded_statements import record_sql

AUTHENTICATE = """mutation SignIn ($input: AuthenticateInput!) {
  authenticate(input: $input) { errors { code } } }"""


async def sign_in_with(client: GraphQLClient, username: str, password: str) -> None:
    await client(AUTHENTICATE, input={"username": username, "password": password})


def code_and_message(response: Any) -> tuple[str, str]:
    """Return the code and message of the only error of a response."""
    (error,) = response["errors"]
    return error["extensions"]["code"], error["message"]


async def test_operations_count_for_user_domain_address_and_name(
    ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    for _ in range(3):
        await ada("query Inbox { viewer { role } }")
    await ada.execute(
        'mutation Broken { labelDelete(input: {labels: [{id: "x"}]}) { errors { code } } }'
    )
    users = await counters_by_key(admin_client, "USER")
    assert users["ada"]["COMMANDS"] == 4
    assert 0 < users["ada"]["COMMAND_TIME"] < 60
    domains = await counters_by_key(admin_client, "DOMAIN")
    assert list(domains) == ["example.org"]
    assert domains["example.org"]["COMMANDS"] >= users["ada"]["COMMANDS"] + 1
    commands = await counters_by_key(admin_client, "COMMAND")
    assert commands["Inbox"]["COMMANDS"] == 3
    assert set(commands["Inbox"]) == {name.value for name in NAMES_BY_TYPE[MetricSetKind.COMMAND]}
    addresses = await counters_by_key(admin_client, "IP")
    assert addresses["127.0.0.1"]["COMMANDS"] >= 6
    platform = await counters_by_key(admin_client)
    assert list(platform) == [None]
    assert platform[None]["COMMANDS"] >= 8


async def test_platform_has_counters_of_the_processes(admin_client: GraphQLClient) -> None:
    values = (await counters_by_key(admin_client))[None]
    assert values.keys() == {name.value for name in MetricName}
    assert values["USER_CPU_TIME"] > 0
    assert values["MEMORY"] > 10_000_000
    assert values["DATABASE_READS"] > 0
    assert values["READ_BYTES"] > 0
    assert values["CONNECTED_SESSIONS"] == 0
    (node,) = (await list_metrics(admin_client))["nodes"]
    units = {counter["name"]: counter["unit"] for counter in node["counters"]}
    assert (units["MEMORY"], units["COMMAND_TIME"], units["SIGN_INS"]) == ("By", "s", None)
    assert all(counter["description"].endswith(".") for counter in node["counters"])


async def test_operations_on_object_stores_are_counted(
    admin_client: GraphQLClient, tmp_path: Path
) -> None:
    names = [name for name in MetricName if name.startswith("BLOB_")]
    before = (await counters_by_key(admin_client, filter={"names": names}))[None]
    store, digest = FolderStore(tmp_path / "objects"), "ab/" + "ab" * 32
    (tmp_path / "file").write_bytes(b"x" * 500)
    await store.put(digest, b"y" * 1000)
    await store.put_file("cd/" + "cd" * 32, tmp_path / "file")
    assert len(await store.get(digest)) == 1000
    assert len(await store.get_range(digest, 10, 20)) == 10
    assert [len(part) async for part in store.stream(digest, 0, 100)] == [100]
    assert await store.size(digest) == 1000
    with pytest.raises(KeyError):
        await store.get("ef/" + "ef" * 32)
    await store.list_page(ObjectRange("", 10))
    await store.delete([digest, "cd/" + "cd" * 32])
    await store.close()
    after = (await counters_by_key(admin_client, filter={"names": names}))[None]
    changes = {name: after[name] - before[name] for name in names}
    assert changes.pop(MetricName.BLOB_READ_TIME) > 0
    assert changes.pop(MetricName.BLOB_WRITE_TIME) > 0
    assert changes == {
        "BLOB_READS": 4, "BLOB_READ_BYTES": 1110, "BLOB_WRITES": 2, "BLOB_WRITE_BYTES": 1500,
        "BLOB_DELETES": 1, "BLOB_STATS": 1, "BLOB_LISTINGS": 1,
    }  # fmt: skip


async def test_deliveries_and_smtp_commands_are_counted(
    ada: GraphQLClient, admin_client: GraphQLClient, lmtp_client: SmtpTestClient
) -> None:
    await lmtp_client.start_data("ada@example.org")
    lmtp_client.send_bytes(b"Subject: x\r\n\r\nHello\r\n.\r\n")
    assert (await lmtp_client.read_reply()).startswith("250")
    users = await counters_by_key(admin_client, "USER")
    assert users[ada.user.username]["MESSAGES_IN"] == 1
    assert users[ada.user.username]["BYTES_IN"] > 20
    commands = await counters_by_key(admin_client, "COMMAND")
    assert commands["LMTP DATA"]["COMMANDS"] == commands["LMTP RCPT"]["COMMANDS"] == 1
    sessions = await counters_by_key(admin_client, "SESSION")
    (session_key,) = sessions
    assert session_key is not None
    assert global_ids.decode("Session", session_key) > 0
    assert sessions[session_key]["COMMANDS"] == sum(
        values["COMMANDS"] for key, values in commands.items() if str(key).startswith("LMTP ")
    )


async def test_sign_ins_are_counted_also_for_unknown_names(
    environment: Environment, http: httpx.AsyncClient, root: GraphQLClient
) -> None:
    await make_client(environment, http, "carol", password=PASSWORD)
    await sign_in_with(root, "carol", PASSWORD)
    for username in ("carol", "carol", "nobody"):
        await sign_in_with(root, username, "wrong password")
    users = await counters_by_key(root, "USER")
    assert users["carol"]["SIGN_INS"] == 1
    assert users["carol"]["SIGN_IN_FAILURES"] == 2
    platform = (await counters_by_key(root))[None]
    assert (platform["SIGN_INS"], platform["SIGN_IN_FAILURES"]) == (1, 3)
    assert platform["AUTH_CACHE_HITS"] > 0


async def test_counters_of_all_processes_are_added_up(
    environment: Environment, ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    await ada("query Inbox { viewer { role } }")
    async with other_process(environment) as other:
        caller = UsageCaller(ada.user.id, "192.0.2.9")
        for _ in range(5):
            other.usage.count_api_operation("Inbox", caller, 0.01, has_failed=False)
        commands = await counters_by_key(admin_client, "COMMAND", filter={"key": "Inbox"})
        assert commands["Inbox"]["COMMANDS"] == 6
        addresses = await counters_by_key(admin_client, "IP")
        assert addresses["192.0.2.9"]["COMMANDS"] == 5
        users = await counters_by_key(admin_client, "USER")
        assert users["ada"]["COMMANDS"] == 6
        domains = await counters_by_key(admin_client, "DOMAIN")
        assert domains["example.org"]["COMMANDS"] >= 6


async def test_filter_by_time_keeps_the_counts_of_processes_without_new_use(
    environment: Environment,
    clock: ManualClock,
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monotonic_ns = 10**12
    monkeypatch.setattr("models.metrics.usage_recorder.monotonic_ns", lambda: monotonic_ns)
    async with other_process(environment) as other:
        for name in ("Old", "Both"):
            caller = UsageCaller(ada.user.id)
            other.usage.count_api_operation(name, caller, 0.01, has_failed=False)
        monotonic_ns += 3600 * 10**9
        clock.tick(hours=1)
        environment.usage.count_api_operation("Both", UsageCaller(), 0.01, has_failed=False)
        since = (clock() - timedelta(minutes=30)).isoformat()
        commands = await counters_by_key(
            admin_client, "COMMAND", filter={"updatedSince": since, "names": ["COMMANDS"]}
        )
        assert commands["Both"] == {"COMMANDS": 2}
        assert "Old" not in commands


def fill_addresses(recorder: UsageRecorder, count: int) -> list[str]:
    addresses = [f"192.0.2.{number}" for number in range(count)]
    for address in addresses:
        recorder.count_sign_in(UsageCaller(ip=address), has_failed=True)
    return sorted([*addresses, "127.0.0.1"])


async def test_pages_in_both_orders_and_directions(
    environment: Environment, admin_client: GraphQLClient
) -> None:
    await admin_client("{ viewer { role } }")
    async with other_process(environment) as other:
        fill_addresses(environment.usage, 5)
        keys = fill_addresses(other.usage, 12)
        for order, expected in (("KEY_ASC", keys), ("KEY_DESC", keys[::-1])):
            found: list[str] = []
            arguments: dict[str, Any] = {"orderBy": order, "first": 5}
            while True:
                page = await list_metrics(admin_client, "IP", **arguments)
                found += [node["key"] for node in page["nodes"]]
                assert page["totalCount"] == 13
                if not page["pageInfo"]["hasNextPage"]:
                    break
                arguments["after"] = page["pageInfo"]["endCursor"]
            assert found == expected
            last = await list_metrics(admin_client, "IP", orderBy=order, last=3)
            assert [node["key"] for node in last["nodes"]] == expected[-3:]
            before = last["pageInfo"]["startCursor"]
            previous = await list_metrics(admin_client, "IP", orderBy=order, last=2, before=before)
            assert [node["key"] for node in previous["nodes"]] == expected[-5:-3]


def use_command(recorder: UsageRecorder, name: str, count: int, *, user_id: int = 0) -> None:
    for _ in range(count):
        recorder.count_api_operation(name, UsageCaller(user_id), 0.01, has_failed=False)


async def read_all_keys(
    client: GraphQLClient, metric_type: str, page_size: int, **variables: Any
) -> list[str]:
    keys: list[str] = []
    after = None
    while True:
        page = await list_metrics(client, metric_type, first=page_size, after=after, **variables)
        keys += [node["key"] for node in page["nodes"]]
        if not page["pageInfo"]["hasNextPage"]:
            return keys
        after = page["pageInfo"]["endCursor"]


async def test_order_by_value_sorts_the_sums_of_all_processes(
    environment: Environment, admin_client: GraphQLClient
) -> None:
    async with other_process(environment) as other:
        for name, own_count, other_count in (
            ("Split", 30, 31),  # the top of neither process, but of both together
            ("Own", 60, 0),
            ("Other", 0, 59),
            ("Equal B", 20, 0),
            ("Equal A", 0, 20),
        ):
            use_command(environment.usage, name, own_count)
            use_command(other.usage, name, other_count)
        expected = ["Split", "Own", "Other", "Equal B", "Equal A"]
        since = {"updatedSince": "2020-01-01T00:00:00Z"}
        for variables in ({}, {"filter": since}, {"filter": {"names": ["COMMAND_TIME"]}}):
            for page_size in (2, 250):
                keys = await read_all_keys(
                    admin_client, "COMMAND", page_size, orderBy="COMMANDS_DESC", **variables
                )
                assert keys[:5] == expected
        page = await list_metrics(admin_client, "COMMAND", orderBy="COMMANDS_DESC", first=2)
        counters = {counter["name"]: counter["value"] for counter in page["nodes"][0]["counters"]}
        assert counters["COMMANDS"] == 61
        assert counters["COMMAND_TIME"] == pytest.approx(0.61)
        ascending = await list_metrics(admin_client, "COMMAND", orderBy="COMMANDS_ASC", last=5)
        assert [node["key"] for node in ascending["nodes"]] == expected[::-1]
        before = ascending["pageInfo"]["startCursor"]
        previous = await list_metrics(
            admin_client, "COMMAND", orderBy="COMMANDS_ASC", last=5, before=before
        )
        assert not {node["key"] for node in previous["nodes"]} & set(expected)


async def test_order_by_value_of_users_and_addresses(
    environment: Environment, ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    use_command(environment.usage, "Inbox", 50, user_id=ada.user.id)
    use_command(environment.usage, "Inbox", 40, user_id=10**6)
    keys = await read_all_keys(admin_client, "USER", 1, orderBy="COMMAND_TIME_DESC")
    assert keys[:2] == ["ada", str(10**6)]
    fill_addresses(environment.usage, 3)
    environment.usage.count_sign_in(UsageCaller(ip="192.0.2.1"), has_failed=True)
    keys = await read_all_keys(admin_client, "IP", 1, orderBy="SIGN_IN_FAILURES_DESC")
    assert keys == ["192.0.2.1", "192.0.2.2", "192.0.2.0", "127.0.0.1"]
    (platform,) = (await list_metrics(admin_client, orderBy="BYTES_OUT_DESC"))["nodes"]
    assert platform["key"] is None


async def test_order_by_a_counter_that_the_type_lacks_is_refused(
    environment: Environment, admin_client: GraphQLClient
) -> None:
    response = await admin_client.execute(METRICS, type="COMMAND", orderBy="BYTES_OUT_DESC")
    code, message = code_and_message(response)
    assert (code, message) == ("BAD_USER_INPUT", "COMMAND has no counter BYTES_OUT.")
    fill_addresses(environment.usage, 3)
    page = await list_metrics(admin_client, "IP", first=1)
    for order in ("SIGN_INS_DESC", "COMMANDS_DESC"):
        cursor = page["pageInfo"]["endCursor"]
        response = await admin_client.execute(METRICS, type="IP", orderBy=order, after=cursor)
        assert code_and_message(response) == ("BAD_CURSOR", "Not a cursor of this list.")
        page = await list_metrics(admin_client, "IP", orderBy="SIGN_INS_DESC", first=1)


async def test_order_by_value_needs_a_constant_number_of_statements(
    environment: Environment, admin_client: GraphQLClient
) -> None:
    async def count_statements() -> int:
        statements.clear()
        await list_metrics(admin_client, "IP", orderBy="SIGN_IN_FAILURES_DESC", first=250)
        return len(statements)

    statements = record_sql(environment.database)
    await count_statements()
    few = await count_statements()
    fill_addresses(environment.usage, 200)
    assert await count_statements() == few


async def test_filter_by_key_finds_one_set(
    environment: Environment, ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    await ada("query Inbox { viewer { role } }")
    session_id = global_ids.encode("Session", 5)
    environment.usage.count_api_operation(
        "Inbox", UsageCaller(ada.user.id, "2001:db8::1", 5), None, has_failed=False
    )
    for metric_type, key, shown in (
        ("USER", "ADA", "ada"),
        ("USER", "ada@example.org", "ada"),
        ("DOMAIN", "EXAMPLE.org", "example.org"),
        ("IP", "2001:DB8:0::1", "2001:db8::1"),
        ("COMMAND", "Inbox", "Inbox"),
        ("SESSION", session_id, session_id),
    ):
        page = await list_metrics(admin_client, metric_type, filter={"key": key})
        assert [node["key"] for node in page["nodes"]] == [shown]
        assert page["totalCount"] == 1
    past = {"updatedSince": "2031-01-01T00:00:00Z", "key": "ada"}
    assert (await list_metrics(admin_client, "USER", filter=past))["nodes"] == []
    for metric_type, key in (
        ("USER", "nobody"), ("DOMAIN", "example.net"), ("IP", "192.0.2.1"),
        ("COMMAND", "x"), ("SESSION", global_ids.encode("Session", 6)), ("USER", "other"),
    ):  # fmt: skip
        page = await list_metrics(admin_client, metric_type, filter={"key": key})
        assert page["nodes"] == []


async def test_evicted_keys_are_in_other(
    environment: Environment, admin_client: GraphQLClient
) -> None:
    object.__setattr__(environment, "usage", UsageRecorder(max_keys=20))
    for number in range(1, 60):
        environment.usage.count_api_operation(
            f"Name{number}", UsageCaller(10**6 + number), None, has_failed=False
        )
    users = await counters_by_key(admin_client, "USER")
    assert sum(values["COMMANDS"] for values in users.values()) == 59
    assert users["other"]["COMMANDS"] > 30
    commands = await counters_by_key(admin_client, "COMMAND", filter={"key": "other"})
    assert list(commands) == ["other"]


async def test_bad_arguments_are_refused(admin_client: GraphQLClient) -> None:
    for variables, message in (
        ({"type": "GLOBAL", "filter": {"key": "x"}}, "GLOBAL has no key."),
        ({"type": "IP", "filter": {"key": "x"}}, "Not an IP address."),
        ({"type": "IP", "filter": {"names": []}}, "From 1 to 100 names are required."),
        ({"type": "IP", "filter": {"names": ["SIGN_INS"] * 101}}, "From 1 to 100 names"),
        ({"type": "COMMAND", "filter": {"key": "x" * 321}}, "At most 320 characters"),
        ({"type": "SESSION", "filter": {"key": "x"}}, ""),
        ({"type": "SESSION", "filter": {"key": "\0"}}, ""),
        ({"type": "USER", "filter": {}}, "At least one condition is required."),
        ({"type": "USER", "after": "x"}, "Not a cursor of this list."),
        ({"type": "USER", "first": 251}, "A page has from 0 to 250 items."),
    ):
        response = await admin_client.execute(METRICS, **variables)
        assert response.get("data") in (None, {"metrics": None})
        code, text = code_and_message(response)
        assert code.startswith("BAD_"), (variables, response)
        assert text.startswith(message), (variables, response)
    for variables in (
        {"type": "USER", "filter": {"key": "\u202e; -- "}},
        {"type": "COMMAND", "filter": {"key": "'; DROP TABLE"}},
        {"type": "DOMAIN", "filter": {"key": "a" * 300 + ".."}},
        {"type": "USER", "filter": {"updatedSince": "9999-12-31T23:59:59Z"}},
    ):
        assert (await list_metrics(admin_client, **rename_type(variables)))["nodes"] == []


def rename_type(variables: dict[str, Any]) -> dict[str, Any]:
    return {("metric_type" if name == "type" else name): value for name, value in variables.items()}


async def test_cursor_of_another_type_is_refused(
    environment: Environment, admin_client: GraphQLClient
) -> None:
    fill_addresses(environment.usage, 3)
    page = await list_metrics(admin_client, "IP", first=1)
    response = await admin_client.execute(METRICS, type="USER", after=page["pageInfo"]["endCursor"])
    assert code_and_message(response) == ("BAD_CURSOR", "Not a cursor of this list.")


@pytest.mark.parametrize("role", [Role.USER, Role.DOMAIN_ADMIN])
async def test_only_administrators_of_the_platform_see_metrics(
    environment: Environment, http: httpx.AsyncClient, role: Role
) -> None:
    client = (
        await make_client(environment, http, "eve")
        if role is Role.USER
        else await make_domain_admin(environment, http, "eve", domains=())
    )
    for metric_type in MetricSetKind:
        response = await client.execute(METRICS, type=metric_type.value)
        assert response["data"] == {"metrics": None}
        assert code_and_message(response)[0] == "FORBIDDEN"


async def test_reset_moves_the_start_of_counters_of_all_processes(
    environment: Environment, clock: ManualClock, ada: GraphQLClient, root: GraphQLClient
) -> None:
    await ada("query Inbox { viewer { role } }")
    async with other_process(environment) as other:
        other.usage.count_api_operation("Inbox", UsageCaller(ada.user.id), 0.1, has_failed=False)
        reads_before = (await counters_by_key(root))[None]["DATABASE_READS"]
        prometheus_before = sign_in.SIGN_INS.family()
        operations_before = prometheus_metrics.collect_families()
        clock.tick(minutes=1)
        result = await root(METRICS_RESET, input={"names": ["COMMANDS", "DATABASE_READS"]})
        assert result["metricsReset"]["errors"] == []
        reset_at = result["metricsReset"]["resetAt"]
        page = await list_metrics(root, "COMMAND", filter={"key": "Inbox"})
        (inbox,) = page["nodes"]
        counters = {counter["name"]: counter for counter in inbox["counters"]}
        assert counters["COMMANDS"]["value"] == 0
        assert counters["COMMANDS"]["resetAt"] == inbox["resetAt"] == reset_at
        assert counters["COMMAND_TIME"]["value"] > 0
        assert counters["COMMAND_TIME"]["resetAt"] is None
        assert (await counters_by_key(root))[None]["DATABASE_READS"] < reads_before
        await ada("query Inbox { viewer { role } }")
        assert (await counters_by_key(root, "USER"))["ada"]["COMMANDS"] == 1
        assert sign_in.SIGN_INS.family() == prometheus_before
        for before, after in zip(
            operations_before, prometheus_metrics.collect_families(), strict=True
        ):
            if before.kind is prometheus_metrics.MetricKind.COUNTER:
                assert sum(p.value for p in after.points) >= sum(p.value for p in before.points)


async def test_reset_is_stored_and_a_new_process_begins_after_it(
    environment: Environment, root: GraphQLClient
) -> None:
    await root(METRICS_RESET, input={})
    resets = await load_reset_times(environment)
    assert resets.keys() == {name.value for name in MetricName if name not in GAUGES}
    async with other_process(environment) as other:
        await skip_stored_resets(other)
        other.usage.count_api_operation("Inbox", UsageCaller(), 0.1, has_failed=False)
        await apply_resets(other, resets)  # as a request to all processes does
        commands = await counters_by_key(root, "COMMAND")
        assert commands["Inbox"]["COMMANDS"] == 1
        (node,) = (await list_metrics(root))["nodes"]
        assert node["resetAt"] is not None


async def test_bad_resets_change_nothing(
    environment: Environment, root: GraphQLClient, admin_client: GraphQLClient
) -> None:
    for names, constraint, path in (
        ([], "RANGE", ["names"]),
        (["SIGN_INS", "MEMORY"], "ENUM", ["names", "1"]),
    ):
        payload = (await root(METRICS_RESET, input={"names": names}))["metricsReset"]
        (error,) = payload["errors"]
        assert (error["constraint"], error["path"]) == (constraint, path)
        assert payload["resetAt"] is None
    response = await admin_client.execute(METRICS_RESET, input={})
    assert "FORBIDDEN" in str(response)
    assert await load_reset_times(environment) == {}


async def test_number_of_statements_does_not_depend_on_the_number_of_users(
    environment: Environment, admin_client: GraphQLClient
) -> None:
    counts = []
    await list_metrics(admin_client, "USER")  # the use of the key is recorded
    for user_count in (1, 20):
        for user_id in range(user_count):
            caller = UsageCaller(10**6 + user_id)
            environment.usage.count_api_operation("x", caller, 0.1, has_failed=False)
        statements = record_sql(environment.database)
        await list_metrics(admin_client, "USER", first=100)
        counts.append(len(statements))
    assert counts[0] == counts[1]
