"""Ban policy, bans and delays by GraphQL: effects, rights, bad input and locked-out callers."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select

from graph.app import create_app
from mail.throttling.ban_changes import refresh_refused_networks_from_database
from mail.throttling.network_failures import count_failure_and_ban_at_limit
from models.admin.audit_log import AuditLogEntry
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.throttling.policy import MAX_LIST_ENTRIES, BanCause
from models.throttling.tables import NetworkBan
from resolvers.auth import throttles
from resolvers.auth.throttles import FailureLimit
from resolvers.throttling import bans
from tests.conftest import GraphQLClient, ManualClock
from tests.support.case_loop import each_case
from tests.support.lists.list_rows import FIRST_TIME, add_rows
from tests.support.operations.domain_operations import run_mutation
from tests.support.operations.platform.ban_operations import (
    BAN_ADD,
    BAN_LIFT,
    PENALTIES_QUERY,
    POLICY_UPDATE,
    add_bans,
    lift_bans,
    load_bans,
    update_policy,
)
from tests.support.stores.counter_check import load_journal_entries, select_rows

NETWORK = "203.0.113.0/24"
CALLER_IP = "198.51.100.7"
BANS = "SELECT network FROM network_bans"


async def read_event_types(environment: Environment) -> list[EventType]:
    """Read the types of the events about bans in the journal, in order."""
    entries = await load_journal_entries(environment, PLATFORM)
    return [kind for kind, _ in entries if kind.startswith("BAN_")]


async def read_audit_log(environment: Environment) -> Sequence[Any]:
    """Read the entries about bans in the audit log, the oldest first."""
    table = core_table(AuditLogEntry)
    statement = select(table).where(table.c.mutation.startswith("ban")).order_by(table.c.id)
    return await environment.database.read(statement)


@pytest.fixture
async def remote_admin(admin_client: GraphQLClient, tmp_path: Any) -> Any:
    """The client of an ADMIN whose connection comes from CALLER_IP."""
    app = create_app(admin_client.environment, spool_folder=tmp_path / "remote")
    transport = httpx.ASGITransport(app=app, client=(CALLER_IP, 4711))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        yield GraphQLClient(http, admin_client.environment, admin_client.user, admin_client.secret)
    await app.end_subscriptions()


async def test_policy_has_defaults_and_is_changed(
    admin_client: GraphQLClient, environment: Environment
) -> None:
    policy = await update_policy(admin_client, maxAttempts=5)
    assert policy == {
        "banTime": "PT1800S", "banTimeIncrement": True, "maxAttempts": 5, "retryWindow": "PT600S",
        "netmaskIpv4": 32, "netmaskIpv6": 64, "allowlist": [], "denylist": [],
        "permanentBans": [], "hosts": [],
    }  # fmt: skip
    policy = await update_policy(
        admin_client,
        banTime="PT2H",
        banTimeIncrement=False,
        retryWindow="P1D",
        netmaskIpv4=24,
        netmaskIpv6=48,
        allowlist=["192.0.2.1", "192.0.2.1/32", "2001:db8::7/64"],
        denylist=[" 203.0.113.9/24 ", "::ffff:198.51.100.1"],
    )
    assert (policy["maxAttempts"], policy["banTime"]) == (5, "PT7200S")
    assert policy["allowlist"] == ["192.0.2.1/32", "2001:db8::/64"]
    assert policy["denylist"] == policy["permanentBans"] == [NETWORK, "198.51.100.1/32"]
    assert environment.refuses_ip("203.0.113.200")
    assert environment.refused_networks.policy.netmask_ipv4 == 24
    assert await read_event_types(environment) == [EventType.BAN_POLICY_UPDATED] * 2


async def test_unchanged_policy_is_not_recorded(
    admin_client: GraphQLClient, environment: Environment
) -> None:
    await update_policy(admin_client, maxAttempts=20)
    assert await read_event_types(environment) == []
    assert await read_audit_log(environment) == []


BAD_POLICIES: list[tuple[dict[str, Any], list[str], str]] = [
    ({"banTime": "PT59S"}, ["banTime"], "RANGE"),
    ({"banTime": "P31D"}, ["banTime"], "RANGE"),
    ({"retryWindow": "P8D"}, ["retryWindow"], "RANGE"),
    ({"maxAttempts": 0}, ["maxAttempts"], "RANGE"),
    ({"maxAttempts": 10_001}, ["maxAttempts"], "RANGE"),
    ({"netmaskIpv4": 7}, ["netmaskIpv4"], "RANGE"),
    ({"netmaskIpv4": 33}, ["netmaskIpv4"], "RANGE"),
    ({"netmaskIpv6": 15}, ["netmaskIpv6"], "RANGE"),
    ({"denylist": ["0.0.0.0/0"]}, ["denylist", "0"], "RANGE"),
    ({"denylist": [NETWORK, "::/0"]}, ["denylist", "1"], "RANGE"),
    ({"denylist": ["::/16"]}, ["denylist", "0"], "RANGE"),
    ({"denylist": ["localhost"]}, ["denylist", "0"], "HOST"),
    ({"denylist": [""]}, ["denylist", "0"], "HOST"),
    ({"denylist": ["1.2.3"]}, ["denylist", "0"], "HOST"),
    ({"denylist": ["203.0.113.7/33"]}, ["denylist", "0"], "HOST"),
    ({"allowlist": ["a" * 300 + ".example"]}, ["allowlist", "0"], "HOST"),
    ({"allowlist": ["bad name.example"]}, ["allowlist", "0"], "HOST"),
    ({"allowlist": [f"h{n}.example" for n in range(201)]}, ["allowlist"], "MAX"),
    ({"denylist": ["203.0.113.7"] * (MAX_LIST_ENTRIES + 1)}, ["denylist"], "MAX"),
]


async def test_bad_policy_is_refused_and_changes_nothing(admin_client: GraphQLClient) -> None:
    for case in each_case(BAD_POLICIES):
        with case as (values, path, constraint):
            _, (error,) = await run_mutation(admin_client, POLICY_UPDATE, set=values)
            assert (error["code"], error["constraint"]) == ("VALIDATION", constraint)
            assert error["path"] == ["set", *path]
            assert (await update_policy(admin_client, maxAttempts=20))["denylist"] == []


async def test_list_of_100_000_lines_is_refused(admin_client: GraphQLClient) -> None:
    lines = [f"203.{n >> 16}.{n >> 8 & 255}.{n & 255}" for n in range(100_000)]
    response = await admin_client.execute(POLICY_UPDATE, input={"set": {"denylist": lines}})
    errors = response.get("errors") or response["data"]["banPolicyUpdate"]["errors"]
    assert errors
    assert (await update_policy(admin_client, maxAttempts=20))["denylist"] == []


async def test_longest_list_is_accepted(
    admin_client: GraphQLClient, environment: Environment
) -> None:
    lines = [f"203.0.{n >> 8}.{n & 255}/32" for n in range(MAX_LIST_ENTRIES)]
    assert (await update_policy(admin_client, denylist=lines))["denylist"] == lines
    assert environment.refuses_ip("203.0.19.135")
    entry = (await read_audit_log(environment))[0]
    assert entry.after["denylist"][0] == lines[0]


async def test_ban_is_added_extended_and_lifted(
    admin_client: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    (ban,) = await add_bans(admin_client, "203.0.113.9/24", duration="PT2H", reason="guessing")
    assert ban.pop("id")
    assert ban == {
        "network": NETWORK, "cause": "MANUAL", "reason": "guessing", "failureCount": 0,
        "banCount": 1, "startedAt": "2030-01-01T00:00:00Z", "endsAt": "2030-01-01T02:00:00Z",
    }  # fmt: skip
    assert environment.refuses_ip("203.0.113.77")
    clock.tick(hours=1)
    (longer,) = await add_bans(admin_client, NETWORK, duration="P1D")
    assert (longer["endsAt"], longer["reason"]) == ("2030-01-02T01:00:00Z", None)
    assert (await load_bans(admin_client))["totalCount"] == 1
    lifted = await lift_bans(admin_client, "203.0.113.5/32", reason="wrong client")
    assert (lifted["banCount"], lifted["networkBans"][0]["network"]) == (1, NETWORK)
    assert not environment.refuses_ip("203.0.113.77")
    assert (await load_bans(admin_client))["totalCount"] == 0
    audit_log = await read_audit_log(environment)
    assert {(entry.mutation, entry.reason) for entry in audit_log} == {
        ("banAdd", "guessing"), ("banAdd", None), ("banLift", "wrong client"),
    }  # fmt: skip
    assert await read_event_types(environment) == [
        EventType.BAN_CREATED,
        EventType.BAN_CREATED,
        EventType.BAN_LIFTED,
    ]


async def test_lift_of_unbanned_network_is_recorded_without_event(
    admin_client: GraphQLClient, environment: Environment
) -> None:
    lifted = await lift_bans(admin_client, NETWORK, reason="to be sure")
    assert (lifted["banCount"], lifted["penaltyCount"], lifted["networkBans"]) == (0, 0, [])
    assert await read_event_types(environment) == []
    (entry,) = await read_audit_log(environment)
    assert (entry.mutation, entry.reason) == ("banLift", "to be sure")


async def test_next_ban_after_lift_is_as_long_as_a_first_one(
    admin_client: GraphQLClient, clock: ManualClock
) -> None:
    durations = []
    for lifts in (False, False, True, False):
        (ban,) = await add_bans(admin_client, "203.0.113.7")
        durations.append(ban["banCount"])
        if lifts:
            await lift_bans(admin_client, "203.0.113.0/24")
        else:
            clock.tick(hours=3)
    assert durations == [1, 2, 3, 1]


async def test_lift_also_resets_bans_that_have_ended(
    admin_client: GraphQLClient, clock: ManualClock
) -> None:
    await add_bans(admin_client, "203.0.113.7", duration="PT1H")
    clock.tick(hours=2)
    assert (await lift_bans(admin_client, NETWORK))["banCount"] == 0
    (ban,) = await add_bans(admin_client, "203.0.113.7")
    assert ban["banCount"] == 1


async def test_lift_of_very_many_bans_has_one_audit_log_entry(
    admin_client: GraphQLClient, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bans, "MAX_BANS_PER_TRANSACTION", 500)
    await add_rows(
        environment,
        NetworkBan,
        1200,
        network=lambda n: f"203.0.{n >> 8}.{n & 255}/32",
        first_ip=lambda n: f"{0xFFFF_CB00_0000 + n:032x}",
        last_ip=lambda n: f"{0xFFFF_CB00_0000 + n:032x}",
        ends_at=lambda _: FIRST_TIME + timedelta(days=1),
    )
    lifted = await lift_bans(admin_client, "203.0.0.0/16")
    assert (lifted["banCount"], len(lifted["networkBans"])) == (1200, 1000)
    (entry,) = await read_audit_log(environment)
    assert entry.before == {"networks": ["203.0.0.0/16"], "banCount": 1200}
    assert (await load_bans(admin_client))["totalCount"] == 0
    assert await read_event_types(environment) == [EventType.BAN_LIFTED] * 3


BAD_BANS: list[tuple[str, dict[str, Any], list[str], str]] = [
    (BAN_ADD, {"networks": []}, ["networks"], "REQUIRED"),
    (BAN_LIFT, {"networks": []}, ["networks"], "REQUIRED"),
    (BAN_ADD, {"networks": ["203.0.113.7"] * 1001}, ["networks"], "MAX"),
    (BAN_LIFT, {"networks": ["203.0.113.7"] * 1001}, ["networks"], "MAX"),
    (BAN_ADD, {"networks": [NETWORK, "0.0.0.0/0"]}, ["networks", "1"], "RANGE"),
    (BAN_ADD, {"networks": ["2001::/15"]}, ["networks", "0"], "RANGE"),
    (BAN_ADD, {"networks": ["::/80"]}, ["networks", "0"], "RANGE"),
    (BAN_ADD, {"networks": ["127.0.0.1"]}, ["networks", "0"], "CIDR"),
    (BAN_ADD, {"networks": ["::ffff:127.0.0.1"]}, ["networks", "0"], "CIDR"),
    (BAN_ADD, {"networks": ["::1"]}, ["networks", "0"], "CIDR"),
    (BAN_ADD, {"networks": [NETWORK], "duration": "PT1S"}, ["duration"], "RANGE"),
    (BAN_ADD, {"networks": [NETWORK], "duration": "P31D"}, ["duration"], "RANGE"),
    (BAN_ADD, {"networks": [NETWORK], "reason": "x" * 256}, ["reason"], "LENGTH"),
    (BAN_LIFT, {"networks": [NETWORK], "reason": "a\nb"}, ["reason"], "LENGTH"),
]


async def test_bad_ban_is_refused_and_changes_nothing(
    admin_client: GraphQLClient, environment: Environment
) -> None:
    for case in each_case(BAD_BANS):
        with case as (document, values, path, constraint):
            _, (error,) = await run_mutation(admin_client, document, **values)
            assert (error["constraint"], error["path"]) == (constraint, path)
            assert await select_rows(environment, BANS) == []
            assert await read_audit_log(environment) == []


async def test_caller_is_not_locked_out_by_ban(
    remote_admin: GraphQLClient, environment: Environment
) -> None:
    cases: list[list[str]] = [["198.51.100.0/24"], [CALLER_IP], ["::ffff:198.51.100.7"]]
    for case in each_case(cases):
        with case as networks:
            _, (error,) = await run_mutation(remote_admin, BAN_ADD, networks=[NETWORK, *networks])
            assert (error["code"], error["path"]) == ("FORBIDDEN", ["networks"])
            assert CALLER_IP in error["message"]
            assert await select_rows(environment, BANS) == []


async def test_caller_is_not_locked_out_by_policy(remote_admin: GraphQLClient) -> None:
    denied = ["198.51.100.0/24"]
    _, (error,) = await run_mutation(remote_admin, POLICY_UPDATE, set={"denylist": denied})
    assert (error["code"], error["path"]) == ("FORBIDDEN", ["set", "denylist"])
    policy = await update_policy(remote_admin, denylist=denied, allowlist=[CALLER_IP])
    assert policy["denylist"] == denied
    _, (error,) = await run_mutation(remote_admin, POLICY_UPDATE, set={"allowlist": []})
    assert (error["code"], error["path"]) == ("FORBIDDEN", ["set", "allowlist"])
    await add_bans(remote_admin, "198.51.100.0/24")  # the caller is in the allow list
    await update_policy(remote_admin, denylist=[])
    _, (error,) = await run_mutation(remote_admin, POLICY_UPDATE, set={"allowlist": []})
    assert "a ban" in error["message"]


async def test_dry_run_and_rollback_leave_nothing_in_memory(
    admin_client: GraphQLClient, environment: Environment
) -> None:
    await refresh_refused_networks_from_database(environment)
    options = {"validateOnly": True}
    _, errors = await run_mutation(admin_client, BAN_ADD, networks=[NETWORK], options=options)
    assert errors == []
    document = f"""mutation ($a: BanAddInput!, $b: BanPolicyUpdateInput!) @atomic {{
      {BAN_ADD[BAN_ADD.index("{") + 1 : -1].replace("$input", "$a")}
      {POLICY_UPDATE[POLICY_UPDATE.index("{") + 1 : -1].replace("$input", "$b")} }}"""
    policy = {"set": {"denylist": ["x"]}}
    await admin_client.execute(document, a={"networks": [NETWORK]}, b=policy)
    assert not environment.refuses_ip("203.0.113.7")
    assert await select_rows(environment, BANS) == []
    assert environment.refused_networks.last_change == 0


async def test_bans_are_paged_filtered_and_ordered(
    admin_client: GraphQLClient, environment: Environment, statements: list[str]
) -> None:
    def digits(number: int) -> str:
        return f"{0xFFFF_CB00_7100 + number:032x}"

    counts = []
    await load_bans(admin_client)  # reads the credential
    for first, last in ((0, 1), (1, 20)):
        await add_rows(
            environment,
            NetworkBan,
            last - first,
            network=lambda n, first=first: f"203.0.113.{first + n}/32",
            first_ip=lambda n, first=first: digits(first + n),
            last_ip=lambda n, first=first: digits(first + n),
            started_at=lambda n, first=first: FIRST_TIME - timedelta(minutes=first + n),
            ends_at=lambda n, first=first: FIRST_TIME + timedelta(minutes=1 + first + n),
        )
        del statements[:]
        await load_bans(admin_client, first=50)
        counts.append(len(statements))
    assert counts[0] == counts[1]
    page = await load_bans(admin_client, first=3)
    assert (page["totalCount"], page["pageInfo"]["hasNextPage"]) == (20, True)
    assert [node["network"] for node in page["nodes"]] == [f"203.0.113.{n}/32" for n in range(3)]
    after = page["pageInfo"]["endCursor"]
    page = await load_bans(admin_client, first=3, after=after)
    assert page["nodes"][0]["network"] == "203.0.113.3/32"
    page = await load_bans(admin_client, orderBy="ENDS_AT_DESC", first=1)
    assert page["nodes"][0]["network"] == "203.0.113.19/32"
    page = await load_bans(admin_client, filter={"networks": ["203.0.113.4/30", "203.0.113.0"]})
    assert page["totalCount"] == len(page["nodes"]) == 5
    many = [f"203.0.113.{n}" for n in range(100)]
    assert (await load_bans(admin_client, filter={"networks": many}))["totalCount"] == 20
    wide = {"networks": ["0.0.0.0/0"]}
    assert (await load_bans(admin_client, filter=wide))["totalCount"] == 20


async def test_containing_and_contained_bans_are_found(admin_client: GraphQLClient) -> None:
    await add_bans(admin_client, "203.0.0.0/8", "203.0.113.7", "2001:db8::/32", "198.51.100.0/24")
    for network, count in (
        ("203.0.113.0/24", 2),
        ("2001:db8::7", 1),
        ("203.9.9.9", 1),
        ("::/0", 4),
    ):
        page = await load_bans(admin_client, filter={"networks": [network]})
        assert page["totalCount"] == count, network
    assert (await lift_bans(admin_client, "203.0.113.7"))["banCount"] == 2


async def test_delays_are_listed_and_lifted(
    admin_client: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    limit = FailureLimit(2, timedelta(minutes=5))
    keys = ["user:7@203.0.113.0/24", "network:203.0.113.0/24", "user:7", "name:x@2001:db8::/64"]
    for _ in range(2):
        await throttles.count_failure_return_reached_keys(environment, dict.fromkeys(keys, limit))
    # no delay yet
    await throttles.count_failure_return_reached_keys(environment, {"user:8@203.0.113.0/24": limit})
    penalties = (await admin_client(PENALTIES_QUERY))["loginPenalties"]
    assert penalties["totalCount"] == len(penalties["nodes"]) == 4
    networks = [node["network"] for node in penalties["nodes"]]
    assert sorted(networks, key=str) == ["2001:db8::/64", NETWORK, NETWORK, None]
    assert penalties["nodes"][0] | {"network": 0} == {
        "network": 0, "penalty": "PT300S", "failureCount": 2,
        "lastPenaltyAt": "2030-01-01T00:00:00Z", "expiresAt": "2030-01-01T00:05:00Z",
    }  # fmt: skip
    list_filter = {"networks": ["203.0.113.9"]}
    listed = (await admin_client(PENALTIES_QUERY, filter=list_filter))["loginPenalties"]
    assert listed["totalCount"] == 2
    assert (await lift_bans(admin_client, "203.0.113.9"))["penaltyCount"] == 3
    penalties = (await admin_client(PENALTIES_QUERY))["loginPenalties"]
    assert penalties["totalCount"] == 2
    clock.tick(minutes=6)
    assert (await admin_client(PENALTIES_QUERY))["loginPenalties"]["totalCount"] == 0


async def test_front_end_is_refused_for_banned_client(
    root: GraphQLClient, environment: Environment
) -> None:
    await add_bans(root, NETWORK)
    headers = {**root.headers, "X-Client-IP": "203.0.113.7"}
    response = await root.http.post("/graphql", json={"query": "{ __typename }"}, headers=headers)
    assert response.status_code == 403
    options = {"clientIp": "203.0.113.7"}
    _, (error,) = await run_mutation(root, BAN_LIFT, networks=[NETWORK], options=options)
    assert error["path"] == ["options", "clientIp"]
    assert environment.refuses_ip("203.0.113.7")


async def test_oldest_bans_end_above_the_limit(
    admin_client: GraphQLClient, environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mail.throttling.network_failures.MAX_BANS", 3)
    for number in range(5):
        await add_bans(admin_client, f"203.0.113.{number}")
    refused = [number for number in range(5) if environment.refuses_ip(f"203.0.113.{number}")]
    assert len(refused) == 3
    assert 4 in refused
    assert (await load_bans(admin_client))["totalCount"] == 3


async def test_banned_network_is_not_counted_again(
    admin_client: GraphQLClient, environment: Environment
) -> None:
    await add_bans(admin_client, NETWORK)
    await count_failure_and_ban_at_limit(environment, "203.0.113.7", BanCause.SIGN_IN)
    assert await select_rows(environment, BANS) == [(NETWORK,)]
