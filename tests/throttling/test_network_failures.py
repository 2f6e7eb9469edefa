"""Failures of clients of all protocols: they count once for all processes, and lead to a ban."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import select, update

from graph.app import GraphqlApp, create_app
from graph.http import download_urls
from mail.maintenance import housekeeping
from mail.throttling.ban_changes import refresh_refused_networks_from_database
from mail.throttling.network_failures import count_failure_and_ban_at_limit
from models.auth.security_log import SecurityEvent, SecurityEventAction
from models.events.event_types import EventType
from models.events.journal import PLATFORM
from models.runtime.environment import CommittedOptions, Environment
from models.store.columns import core_table
from models.store.outages import StreamBusy
from models.throttling.policy import BanCause
from models.users.roles import Role, Scope
from models.users.tables import User
from resolvers.auth import authentication
from resolvers.cluster.platform_follower import follow_platform_forever
from resolvers.throttling import client_failures
from tests.conftest import GraphQLClient, ManualClock, make_api_key, make_user
from tests.support.accounts.sign_in_environment import basic_auth_header
from tests.support.case_loop import each_case
from tests.support.clients.http_requests import signed_path
from tests.support.mail_servers.lmtp_client import wait_until
from tests.support.operations.file_operations import share_file, store_file
from tests.support.operations.platform.ban_operations import (
    add_bans,
    load_bans,
    open_other_process,
    update_policy,
)
from tests.support.servers.webhook_receiver import (
    allow_local_webhooks,
    create_webhook,
    make_webhook_worker,
    post_until_idle,
    run_webhook_receiver,
)
from tests.support.stores.counter_check import load_journal_entries, select_rows

IP = "203.0.113.7"
NETWORK = f"{IP}/32"
LIMIT = 3
SIGN_IN = """mutation ($username: String!, $password: String!) { authenticate(input: {
  username: $username, password: $password}) { errors { code } } }"""
VERIFY = """mutation ($username: String!, $password: String!) { passwordVerify(input: {
  username: $username, password: $password, scope: IMAP}) { errors { code } } }"""
FAILURES = "SELECT network, failure_count FROM network_failures"
PASSWORD = "correct horse battery"  # noqa: S105 - a test's


@pytest.fixture
async def remote(
    environment: Environment, admin_client: GraphQLClient, tmp_path: Path
) -> AsyncIterator[httpx.AsyncClient]:
    """An HTTP client whose connection comes from IP. A network is banned after LIMIT failures."""
    await update_policy(admin_client, maxAttempts=LIMIT)
    app = create_app(environment, spool_folder=tmp_path / "remote")
    async with open_remote_client(app, IP) as http:
        yield http
    await app.end_subscriptions()


def open_remote_client(app: GraphqlApp, ip: str) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, client=(ip, 4711))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


async def fail(environment: Environment, times: int = 1, ip: str = IP) -> None:
    for _ in range(times):
        await count_failure_and_ban_at_limit(environment, ip, BanCause.SIGN_IN)


async def fail_sign_in(http: httpx.AsyncClient, _ada: GraphQLClient) -> None:
    variables = {"username": "ada", "password": "wrong"}
    response = await http.post("/graphql", json={"query": SIGN_IN, "variables": variables})
    assert response.json()["data"]["authenticate"]["errors"][0]["code"] == "AUTHENTICATION_FAILED"


async def fail_password_check(http: httpx.AsyncClient, _ada: GraphQLClient) -> None:
    variables = {"username": "ada", "password": "wrong"}
    response = await http.post("/graphql", json={"query": VERIFY, "variables": variables})
    (error,) = response.json()["data"]["passwordVerify"]["errors"]
    assert error["code"] == "AUTHENTICATION_FAILED"


async def fail_basic_sign_in(http: httpx.AsyncClient, _ada: GraphQLClient) -> None:
    headers = basic_auth_header("nobody", "wrong")
    response = await http.post("/graphql", json={"query": "{ __typename }"}, headers=headers)
    assert response.status_code == 401


async def open_forged_share(http: httpx.AsyncClient, _ada: GraphQLClient) -> None:
    assert (await http.get(f"/share/{'A' * 40}")).status_code == 404


async def open_share_with_wrong_password(http: httpx.AsyncClient, ada: GraphQLClient) -> None:
    share = await share_file(ada, await store_file(ada), password=PASSWORD)
    response = await http.get(share["url"], headers=basic_auth_header("x", "wrong"))
    assert response.status_code == 401


async def open_forged_download(http: httpx.AsyncClient, ada: GraphQLClient) -> None:
    path = signed_path(ada, download_urls.message_source_path(7))
    response = await http.get(path.replace("sig=", "sig=0"))
    assert response.status_code in {401, 404}


HTTP_FAILURES: dict[str, tuple[Callable[..., Awaitable[None]], BanCause]] = {
    "sign-in": (fail_sign_in, BanCause.SIGN_IN),
    "password check": (fail_password_check, BanCause.SIGN_IN),
    "basic": (fail_basic_sign_in, BanCause.SIGN_IN),
    "share": (open_forged_share, BanCause.FORGED_LINK),
    "share password": (open_share_with_wrong_password, BanCause.LINK_PASSWORD),
    "download": (open_forged_download, BanCause.FORGED_LINK),
}


async def test_failures_by_http_lead_to_a_ban(
    admin_client: GraphQLClient, ada: GraphQLClient, environment: Environment, tmp_path: Path
) -> None:
    await update_policy(admin_client, maxAttempts=LIMIT)
    app = create_app(environment, spool_folder=tmp_path / "remote")
    query = "SELECT cause, failure_count FROM network_bans WHERE network = :network"
    for number, case in enumerate(each_case(HTTP_FAILURES)):
        with case as kind:
            run_failure, cause = HTTP_FAILURES[kind]
            ip = f"203.0.113.{number}"
            async with open_remote_client(app, ip) as remote:
                for _ in range(LIMIT):
                    assert not environment.refuses_ip(ip)
                    await run_failure(remote, ada)
                assert environment.refuses_ip(ip)
                bans = await select_rows(environment, query, network=f"{ip}/32")
                assert bans == [(cause, LIMIT)]
                response = await remote.post("/graphql", json={"query": "{ __typename }"})
                assert response.status_code == 403
                assert response.json()["errors"][0]["extensions"]["code"] == "FORBIDDEN"
                assert (await remote.get("/health/live")).status_code == 403
    assert await select_rows(environment, "SELECT count(*) FROM network_bans") == [
        (len(HTTP_FAILURES),)
    ]
    await app.end_subscriptions()


async def test_other_failures_of_http_are_not_counted(
    remote: httpx.AsyncClient, ada: GraphQLClient, environment: Environment
) -> None:
    share = await share_file(ada, await store_file(ada), password=PASSWORD)
    assert (await remote.get(share["url"])).status_code == 401  # asks for the password
    right = basic_auth_header("x", PASSWORD)
    assert (await remote.get(share["url"], headers=right)).status_code == 200
    assert (await remote.get("/nowhere")).status_code == 404
    response = await remote.post("/graphql", json={"query": "{ viewer { user { id } } }"})
    assert response.json()["data"]["viewer"]["user"] is None
    assert await select_rows(environment, FAILURES) == []


async def test_ban_is_logged_and_sent_to_webhook(
    remote: httpx.AsyncClient,
    ada: GraphQLClient,
    root: GraphQLClient,
    environment: Environment,
    caplog: pytest.LogCaptureFixture,
) -> None:
    allow_local_webhooks(environment)
    async with run_webhook_receiver() as receiver:
        await create_webhook(root, f"http://127.0.0.1:{receiver.port}/", "BAN_CREATED")
        for _ in range(LIMIT):
            await fail_sign_in(remote, ada)
        await post_until_idle(make_webhook_worker(environment))
        assert len(receiver.requests) == 1
    await authentication.wait_for_background_tasks(environment)
    rows = await environment.database.read(select(core_table(SecurityEvent)))
    (event,) = [row for row in rows if row.action == SecurityEventAction.BAN_CREATED]
    assert (event.user_id, event.ip) == (ada.user.id, IP)
    (record,) = [item for item in caplog.records if item.message == "Network banned"]
    assert record.name == "mail.throttling.network_failures"
    assert vars(record)["network"] == NETWORK
    entries = await load_journal_entries(environment, PLATFORM)
    assert [kind for kind, _ in entries].count(EventType.BAN_CREATED) == 1


async def test_failure_delays_account_if_it_can_not_be_counted_for_a_ban(
    remote: httpx.AsyncClient,
    ada: GraphQLClient,
    environment: Environment,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def fail_to_count(*_arguments: object) -> None:
        raise StreamBusy

    monkeypatch.setattr(client_failures, "count_failure_and_ban_at_limit", fail_to_count)
    await fail_sign_in(remote, ada)
    assert [record.message for record in caplog.records].count("Failure not counted for a ban") == 1
    counts = await select_rows(environment, "SELECT DISTINCT failures FROM throttles")
    assert counts == [(1,)]


async def test_failures_of_two_processes_count_together(
    admin_client: GraphQLClient, environment: Environment
) -> None:
    await update_policy(admin_client, maxAttempts=4)
    other = open_other_process(environment)
    await fail(environment, 2)
    await fail(other, 1)
    assert not other.refuses_ip(IP)
    await fail(other, 1)
    assert other.refuses_ip(IP)
    await refresh_refused_networks_from_database(environment)
    assert environment.refuses_ip(IP)
    await other.database.close()


async def test_last_failures_at_once_cause_one_ban(
    admin_client: GraphQLClient, environment: Environment
) -> None:
    await update_policy(admin_client, maxAttempts=LIMIT)
    other = open_other_process(environment)
    await refresh_refused_networks_from_database(other)
    await asyncio.gather(*(fail(process) for process in (environment, other) * LIMIT))
    assert (await load_bans(admin_client))["nodes"][0]["banCount"] == 1
    entries = await load_journal_entries(environment, PLATFORM)
    assert [kind for kind, _ in entries].count(EventType.BAN_CREATED) == 1
    await other.database.close()


async def test_ban_reaches_another_process_without_wakeup_and_survives_restart(
    admin_client: GraphQLClient, environment: Environment
) -> None:
    other = open_other_process(environment)  # has its own wake-ups
    follower = asyncio.create_task(follow_platform_forever(other))
    await wait_until(lambda: other.refused_networks.last_change >= 0)
    await add_bans(admin_client, NETWORK)
    await wait_until(lambda: other.refuses_ip(IP))
    await update_policy(admin_client, allowlist=[IP])
    await wait_until(lambda: not other.refuses_ip(IP))
    follower.cancel()
    await asyncio.wait([follower])
    await update_policy(admin_client, allowlist=[])
    restarted = replace(open_other_process(environment), database=other.database)
    await refresh_refused_networks_from_database(restarted)
    assert restarted.refuses_ip(IP)
    await other.database.close()


async def test_wakeups_of_the_platform_cause_few_reads(
    environment: Environment, statements: list[str]
) -> None:
    follower = asyncio.create_task(follow_platform_forever(environment))
    await wait_until(lambda: environment.refused_networks.last_change >= 0)
    del statements[:]
    begin, position = time.monotonic(), 0
    while time.monotonic() < begin + 1:
        position += 1
        environment.wakeups.announce({PLATFORM: position})
        await asyncio.sleep(0.001)
    follower.cancel()
    await asyncio.wait([follower])
    assert 1 <= len(statements) <= 5


async def test_failures_survive_restart(
    admin_client: GraphQLClient, environment: Environment
) -> None:
    await update_policy(admin_client, maxAttempts=2)
    await fail(environment)
    restarted = open_other_process(environment)
    await fail(restarted)
    assert restarted.refuses_ip(IP)
    await restarted.database.close()


async def test_window_begins_with_first_failure(
    admin_client: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await update_policy(admin_client, maxAttempts=3, retryWindow="PT10M")
    await fail(environment, 2)
    clock.tick(minutes=10)
    await fail(environment, 2)
    assert not environment.refuses_ip(IP)
    assert await select_rows(environment, FAILURES) == [(NETWORK, 2)]
    await fail(environment)
    assert environment.refuses_ip(IP)
    assert await select_rows(environment, FAILURES) == []


async def test_shorter_window_applies_to_open_windows(
    admin_client: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await update_policy(admin_client, maxAttempts=3, retryWindow="P1D")
    await fail(environment, 2)
    await update_policy(admin_client, retryWindow="PT10M")
    clock.tick(minutes=10)
    await fail(environment)
    assert await select_rows(environment, FAILURES) == [(NETWORK, 1)]


async def test_each_further_ban_lasts_twice_as_long(
    admin_client: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await update_policy(admin_client, maxAttempts=1, banTime="PT12H")
    hours = []
    for _ in range(9):
        begin = clock()
        await fail(environment)
        while environment.refuses_ip(IP):
            clock.tick(hours=12)
        hours.append((clock() - begin) // timedelta(hours=1))
        clock.tick(days=1)
    assert hours == [12, 24, 48, 96, 192, 384, 720, 720, 720]
    clock.tick(days=30)
    await fail(environment)
    clock.tick(hours=12)
    assert not environment.refuses_ip(IP)
    await update_policy(admin_client, banTimeIncrement=False)
    await fail(environment)
    clock.tick(hours=12)
    assert not environment.refuses_ip(IP)


async def test_loopback_and_proxies_are_not_counted(
    admin_client: GraphQLClient, environment: Environment
) -> None:
    environment.refused_networks.replace_never_refused_addresses(proxies=["10.0.0.0/8"])
    await update_policy(admin_client, maxAttempts=1)
    cases: list[str | None] = ["127.0.0.1", "::1", "::ffff:127.0.0.1", "10.1.2.3", None, "x"]
    for case in each_case(cases):
        with case as ip:
            for _ in range(3):
                assert (
                    await count_failure_and_ban_at_limit(environment, ip, BanCause.SIGN_IN) is None
                )
            assert await select_rows(environment, FAILURES) == []
            assert (await load_bans(admin_client))["totalCount"] == 0


async def test_exempt_networks_and_allow_list_are_not_counted(
    admin_client: GraphQLClient, environment: Environment
) -> None:
    await update_policy(admin_client, maxAttempts=1, allowlist=["203.0.113.0/24"])
    options = replace(environment.options, sign_in_exempt_networks=("198.51.100.0/24",))
    environment.use_options_unless_outdated(CommittedOptions(options, environment.options_position))
    for ip in (IP, "198.51.100.1", "::ffff:198.51.100.1"):
        await fail(environment, 2, ip)
    assert (await load_bans(admin_client))["totalCount"] == 0


async def test_front_end_without_client_address_is_not_banned(
    remote: httpx.AsyncClient, ada: GraphQLClient, environment: Environment
) -> None:
    secret = await make_api_key(environment, "front", role=Role.ADMIN, scopes=[Scope.FULL])
    headers = {"Authorization": f"Bearer {secret}"}
    body = {"query": SIGN_IN, "variables": {"username": "ada", "password": "wrong"}}
    for _ in range(LIMIT + 1):
        await remote.post("/graphql", json=body, headers=headers)
    assert await select_rows(environment, FAILURES) == []
    named = {**headers, "X-Client-IP": "198.51.100.9"}
    for _ in range(LIMIT):
        await remote.post("/graphql", json=body, headers=named)
    assert environment.refuses_ip("198.51.100.9")
    assert not environment.refuses_ip(IP)
    assert (await remote.post("/graphql", json=body, headers=named)).status_code == 403
    assert ada.user.id


async def test_forged_header_does_not_ban_others(
    remote: httpx.AsyncClient, ada: GraphQLClient, environment: Environment
) -> None:
    victim = "198.51.100.9"
    remote.headers.update({"X-Forwarded-For": victim, "X-Client-IP": victim, "Forwarded": victim})
    for _ in range(LIMIT):
        await fail_sign_in(remote, ada)
    assert not environment.refuses_ip(victim)
    assert environment.refuses_ip(IP)


async def test_wrong_second_factors_are_counted(
    remote: httpx.AsyncClient, environment: Environment
) -> None:
    user = await make_user(environment, "eve", password=PASSWORD)
    async with environment.write_session() as session:
        await (await session.connection()).execute(
            update(core_table(User))
            .where(core_table(User).c.id == user.id)
            .values(second_factors=["TOTP"])
        )
    document = SIGN_IN.replace("$password}", '$password, totp: "000000"}')
    variables = {"username": "eve", "password": PASSWORD}
    for _ in range(LIMIT):
        await remote.post("/graphql", json={"query": document, "variables": variables})
    (ban,) = await select_rows(environment, "SELECT network, cause FROM network_bans")
    assert ban == (NETWORK, BanCause.SECOND_FACTOR)


async def test_housekeeping_deletes_old_failures_and_bans(
    admin_client: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await update_policy(admin_client, maxAttempts=2)
    await fail(environment)
    await add_bans(admin_client, "198.51.100.0/24", duration="PT1H")
    clock.tick(days=30)
    await housekeeping.run_housekeeping_round(environment)
    bans = "SELECT network FROM network_bans"
    assert await select_rows(environment, FAILURES) == []
    assert await select_rows(environment, bans) == [("198.51.100.0/24",)]
    clock.tick(hours=2)
    await housekeeping.run_housekeeping_round(environment)
    assert await select_rows(environment, bans) == []


@pytest.mark.parametrize("client_name", ["ada", "bob"])
async def test_user_sees_no_bans(
    client_name: str, ada: GraphQLClient, bob: GraphQLClient, admin_client: GraphQLClient
) -> None:
    await add_bans(admin_client, NETWORK)
    client: Any = {"ada": ada, "bob": bob}[client_name]
    for document in ("{ banPolicy { banTime } }", "{ loginPenalties { totalCount } }"):
        response = await client.execute(document)
        assert response["errors"][0]["extensions"]["code"] == "FORBIDDEN"
        assert list(response["data"].values()) == [None]
