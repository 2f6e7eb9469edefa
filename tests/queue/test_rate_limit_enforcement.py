"""Sending rates in effect: all sending paths and processes, exact counts, and notices."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from sqlalchemy import insert

from mail.limits import sending_rates
from mail.maintenance import housekeeping
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.smtp.submission_server import SubmissionListener as Listener
from mail.tls.server_tls import CertificateFiles
from models.errors import RateLimited
from models.queue.rate_limits import RateLimit, RateWindow
from models.queue.rate_values import Rate, RatePeriod, parse_rate_or_unlimited
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import insert_with_conflict
from models.store.database import Database
from models.users.roles import Scope
from models.users.tables import User
from resolvers.auth.authentication import wait_for_background_tasks
from resolvers.submission.smtp_submission import SmtpSubmissionService
from tests.conftest import (
    GraphQLClient,
    ManualClock,
    deliver_to,
    make_api_key,
    make_client,
    make_user,
)
from tests.support.accounts.quota_accounts import load_limit_events, try_send_message
from tests.support.accounts.user_operations import make_admin_of_domain, try_create_user
from tests.support.case_loop import each_case
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.mail_servers.smtp_client import CertificateAuthority, connect_smtp, start_tls
from tests.support.mail_servers.submission_client import (
    PASSWORD,
    sign_in_by_auth_plain,
    submit_message,
)
from tests.support.operations.quarantine_operations import set_options
from tests.support.stores.counter_check import select_rows

pytestmark = pytest.mark.usefixtures("verify_consistency")

SEND = """
mutation ($input: MessageSendInput!) { messageSend(input: $input) {
  submissions { id } errors { code message ... on RateLimitedError { retryAfter } } } }
"""
FORWARD = """
mutation ($input: MessageRedirectInput!) { messageRedirect(input: $input) { errors { code } } }
"""
PER_HOUR = RatePeriod.HOUR


async def set_rate_limit(
    environment: Environment, owner_id: int, rate: Rate, column: str = "user_id"
) -> None:
    """Set the rate limit of an account or domain."""
    now = environment.now()
    values = {"messages": rate.messages, "per": rate.per, "updated_at": now}
    insert_statement = insert_with_conflict(environment.database.dialect, RateLimit)
    insert_statement = insert_statement.values(
        id=owner_id, created_at=now, **values, **{column: owner_id}
    )
    async with environment.write_session() as session:
        upsert = insert_statement.on_conflict_do_update(index_elements=["id"], set_=values)
        await (await session.connection()).execute(upsert)


async def send_refused_message(client: GraphQLClient) -> Any:
    """Send a message that is refused, and return the error."""
    message = {"to": [{"address": "z@example.net"}], "subject": "Hi", "text": "Yo"}
    answer = (await client(SEND, input=message))["messageSend"]
    assert answer["submissions"] == []
    (error,) = answer["errors"]
    return error


async def make_user_of_other_domain(root: GraphQLClient) -> GraphQLClient:
    """Create a user of another domain and return their client."""
    environment = root.environment
    await try_create_user(root, username="far", address="far@afar.example")
    row = (await select_rows(environment, "SELECT id FROM users WHERE username = 'far'"))[0]
    async with environment.write_session() as session:
        user = await session.get_one(User, row[0])
    secret = await make_api_key(
        environment, "far", user_id=user.id, role=user.role, scopes=[Scope.FULL]
    )
    return GraphQLClient(root.http, environment, user, secret)


async def load_used_windows(environment: Environment) -> list[Any]:
    return await select_rows(environment, "SELECT id, used FROM rate_windows ORDER BY id")


async def test_user_rate_counts_messages_not_recipients(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    environment = ada.environment
    await set_rate_limit(environment, ada.user.id, Rate(2, PER_HOUR))
    assert await try_send_message(ada, "a@example.net", "b@example.net", "c@example.net") == []
    clock.tick(minutes=59)
    assert await try_send_message(ada, "a@example.net") == []
    message_counts = await select_rows(environment, "SELECT count(*) FROM messages")
    assert await send_refused_message(ada) == {
        "code": "RATE_LIMITED",
        "message": "This account can send at most 2 messages per hour.",
        "retryAfter": "PT60S",
    }
    assert await select_rows(environment, "SELECT count(*) FROM submissions") == [(2,)]
    assert await select_rows(environment, "SELECT count(*) FROM messages") == message_counts
    ((used,),) = await select_rows(environment, "SELECT used FROM usages WHERE kind = 'RECIPIENTS'")
    assert used == 4
    clock.tick(minutes=1)
    assert await try_send_message(ada, "a@example.net") == []  # a new window begins
    assert await load_used_windows(environment) == [(ada.user.id, 1)]
    await wait_for_background_tasks(environment)


async def test_window_has_the_length_of_its_frame(
    environment: Environment, http: httpx.AsyncClient, clock: ManualClock
) -> None:
    waits = {"SECOND": "PT1S", "MINUTE": "PT60S", "HOUR": "PT3600S", "DAY": "P1D"}
    for case in each_case(RatePeriod):
        with case as frame:
            client = await make_client(environment, http, frame.lower())
            await set_rate_limit(environment, client.user.id, Rate(1, frame))
            assert await try_send_message(client, "a@example.net") == []
            assert (await send_refused_message(client))["retryAfter"] == waits[frame]
            await wait_for_background_tasks(environment)
            clock.tick(seconds=frame.seconds - 0.001)
            assert await try_send_message(client, "a@example.net") == ["RATE_LIMITED"]
            clock.tick(seconds=0.001)
            assert await try_send_message(client, "a@example.net") == []
            await wait_for_background_tasks(environment)


async def test_user_domain_and_platform_limits_all_apply(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, clock: ManualClock
) -> None:
    environment, domain = ada.environment, ada.user.domain_id or 0
    other_domain_user = await make_user_of_other_domain(root)
    set_options(environment, limits_send_rate_platform="4/DAY")
    await set_rate_limit(environment, domain, Rate(3, PER_HOUR), "domain_id")
    await set_rate_limit(environment, ada.user.id, Rate(2, RatePeriod.MINUTE))
    assert [await try_send_message(ada, "a@example.net") for _ in range(3)] == [
        [],
        [],
        ["RATE_LIMITED"],
    ]
    assert await try_send_message(bob, "a@example.net") == []
    expected_message = "All accounts of the domain together can send at most 3 messages per hour."
    assert (await send_refused_message(bob))["message"] == expected_message
    clock.tick(minutes=1)
    assert (await send_refused_message(ada))[
        "message"
    ] == expected_message  # the user's own limit allows more
    assert await try_send_message(other_domain_user, "a@example.net") == []
    expected_message = "All accounts together can send at most 4 messages per day."
    assert (await send_refused_message(other_domain_user))["message"] == expected_message
    clock.tick(hours=1)
    assert (await send_refused_message(bob))["message"] == expected_message
    await wait_for_background_tasks(environment)
    assert await load_used_windows(environment) == sorted([(0, 4), (domain, 3), (ada.user.id, 2)])


async def test_settings_apply_without_a_stored_limit(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    environment = ada.environment
    set_options(
        environment, limits_send_rate_per_user="1/HOUR", limits_send_rate_per_domain="3/HOUR"
    )
    # unlimited, except by the domain
    await set_rate_limit(environment, bob.user.id, Rate(0, PER_HOUR))
    assert [await try_send_message(ada, "a@example.net") for _ in range(2)] == [
        [],
        ["RATE_LIMITED"],
    ]
    assert [await try_send_message(bob, "a@example.net") for _ in range(3)] == [
        [],
        [],
        ["RATE_LIMITED"],
    ]
    await wait_for_background_tasks(environment)
    assert parse_rate_or_unlimited("5/SECOND") == Rate(5, RatePeriod.SECOND)
    assert [
        parse_rate_or_unlimited(text).messages for text in ("", "0/HOUR", "5/WEEK", "1 /HOUR", "x")
    ] == [0] * 5


async def test_changed_frame_resets_the_count_and_changed_value_does_not(
    ada: GraphQLClient,
) -> None:
    environment = ada.environment
    await set_rate_limit(environment, ada.user.id, Rate(1, PER_HOUR))
    assert [await try_send_message(ada, "a@example.net") for _ in range(2)] == [
        [],
        ["RATE_LIMITED"],
    ]
    await set_rate_limit(environment, ada.user.id, Rate(2, PER_HOUR))
    assert [await try_send_message(ada, "a@example.net") for _ in range(2)] == [
        [],
        ["RATE_LIMITED"],
    ]
    await set_rate_limit(environment, ada.user.id, Rate(1, RatePeriod.DAY))
    assert [await try_send_message(ada, "a@example.net") for _ in range(2)] == [
        [],
        ["RATE_LIMITED"],
    ]
    await wait_for_background_tasks(environment)


async def test_forwarded_and_scheduled_messages_count(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    await set_rate_limit(ada.environment, ada.user.id, Rate(2, PER_HOUR))
    message_id = (await deliver_to(ada, "Hello")).message_id
    (node,) = (await ada("{ user { messages { nodes { id } } } }"))["user"]["messages"]["nodes"]
    assert message_id
    arguments = {"message": {"id": node["id"]}, "to": ["a@example.net"]}
    send_at = (clock() + timedelta(days=2)).isoformat()
    assert (await ada(FORWARD, input=arguments))["messageRedirect"]["errors"] == []
    assert await try_send_message(ada, "b@example.net", sendAt=send_at) == []
    answer = (await ada(FORWARD, input=arguments))["messageRedirect"]
    assert answer["errors"] == [{"code": "RATE_LIMITED"}]
    assert await try_send_message(ada, "b@example.net", sendAt=send_at) == ["RATE_LIMITED"]
    ((submission_count,),) = await select_rows(ada.environment, "SELECT count(*) FROM submissions")
    assert submission_count == 2
    await wait_for_background_tasks(ada.environment)


async def test_concurrent_sends_respect_the_limits(ada: GraphQLClient, bob: GraphQLClient) -> None:
    environment = ada.environment
    await set_rate_limit(environment, ada.user.id, Rate(7, PER_HOUR))
    await set_rate_limit(environment, ada.user.domain_id or 0, Rate(17, PER_HOUR), "domain_id")
    clients = [ada, bob] * 25
    answers = await asyncio.gather(
        *(try_send_message(client, f"{n}@example.net") for n, client in enumerate(clients))
    )
    sender_ids = [
        client.user.id for client, errors in zip(clients, answers, strict=True) if errors == []
    ]
    assert (len(sender_ids), sender_ids.count(ada.user.id) <= 7) == (17, True)
    assert await select_rows(environment, "SELECT count(*) FROM submissions") == [(17,)]
    used_by_owner = dict(await load_used_windows(environment))
    assert used_by_owner[ada.user.domain_id] == 17
    assert used_by_owner[ada.user.id] == sender_ids.count(ada.user.id)
    await wait_for_background_tasks(environment)


async def test_processes_share_the_count_and_a_restart_keeps_it(
    ada: GraphQLClient, database: Database
) -> None:
    environment = ada.environment
    await set_rate_limit(environment, ada.user.id, Rate(20, PER_HOUR))
    other_database = Database(database.url)  # another process

    async def is_allowed(database: Database) -> bool:
        process_environment = Environment(
            database,
            environment.object_store,
            signing_secret=b"s" * 32,
            options=environment.options,
            now=environment.now,
        )

        def count_message(transaction: DatabaseTransaction) -> None:
            if exceeded := sending_rates.increment_and_find_exceeded_window(
                transaction, ada.user.id
            ):
                raise exceeded.rate_limited_error(transaction.environment.now())

        try:
            await process_environment.run_transaction(count_message, ada.user.id)
        except RateLimited:
            return False
        return True

    try:
        passed = await asyncio.gather(
            *(
                is_allowed(process_database)
                for _ in range(25)
                for process_database in (database, other_database)
            )
        )
    finally:
        await other_database.close()
    assert sum(passed) == 20
    restarted_database = Database(database.url)
    try:
        assert not await is_allowed(restarted_database)
    finally:
        await restarted_database.close()
    assert await load_used_windows(environment) == [(ada.user.id, 20)]


async def test_user_is_notified_once_per_window(ada: GraphQLClient, clock: ManualClock) -> None:
    environment = ada.environment
    await set_rate_limit(environment, ada.user.id, Rate(1, PER_HOUR))
    await try_send_message(ada, "a@example.net")
    for _ in range(3):
        assert await try_send_message(ada, "a@example.net") == ["RATE_LIMITED"]
        await wait_for_background_tasks(environment)
    assert await load_limit_events(ada) == [("RATE", "FULL", 1, 1, True)]
    clock.tick(hours=1)
    await try_send_message(ada, "a@example.net")
    assert await try_send_message(ada, "a@example.net") == ["RATE_LIMITED"]
    await wait_for_background_tasks(environment)
    assert len(await load_limit_events(ada)) == 2


async def test_user_is_notified_once_per_minute_for_short_windows(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    environment = ada.environment
    await set_rate_limit(environment, ada.user.id, Rate(1, RatePeriod.SECOND))
    for _ in range(59):
        await try_send_message(ada, "a@example.net")
        assert await try_send_message(ada, "a@example.net") == ["RATE_LIMITED"]
        await wait_for_background_tasks(environment)
        clock.tick(seconds=1)
    assert len(await load_limit_events(ada)) == 1
    clock.tick(seconds=1)
    await try_send_message(ada, "a@example.net")
    assert await try_send_message(ada, "a@example.net") == ["RATE_LIMITED"]
    await wait_for_background_tasks(environment)
    assert len(await load_limit_events(ada)) == 2


async def test_validate_only_counts_nothing_but_is_limited(ada: GraphQLClient) -> None:
    environment, validate_only = ada.environment, {"options": {"validateOnly": True}}
    await set_rate_limit(environment, ada.user.id, Rate(1, PER_HOUR))
    assert await try_send_message(ada, "a@example.net", **validate_only) == []
    assert await load_used_windows(environment) == []
    assert await try_send_message(ada, "a@example.net") == []
    assert await try_send_message(ada, "a@example.net", **validate_only) == ["RATE_LIMITED"]
    await wait_for_background_tasks(environment)
    assert (await load_limit_events(ada), await load_used_windows(environment)) == (
        [],
        [(ada.user.id, 1)],
    )


async def test_ended_windows_are_deleted_by_housekeeping(
    ada: GraphQLClient, clock: ManualClock
) -> None:
    environment = ada.environment
    await set_rate_limit(environment, ada.user.id, Rate(1, PER_HOUR))
    await try_send_message(ada, "a@example.net")
    await try_send_message(ada, "a@example.net")
    await wait_for_background_tasks(environment)
    counts = await housekeeping.run_housekeeping_round(environment)
    assert (counts.windows, counts.holds) == (0, 0)
    clock.tick(hours=1)
    counts = await housekeeping.run_housekeeping_round(environment)
    assert (counts.windows, counts.holds) == (1, 1)
    assert await load_used_windows(environment) == []


async def test_nothing_is_written_without_a_limit(
    ada: GraphQLClient, statements: list[str]
) -> None:
    await try_send_message(ada, "a@example.net")
    del statements[:]
    await try_send_message(ada, "a@example.net")
    rate_statements = [statement for statement in statements if "rate_" in statement]
    assert len(rate_statements) == 2
    assert await load_used_windows(ada.environment) == []


async def test_domains_and_users_are_counted_separately(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    environment = root.environment
    await try_create_user(root, username="x", address="x@afar.example")
    domain_admin = await make_admin_of_domain(root, domain="afar.example")
    set_options(environment, limits_send_rate_per_user="1/HOUR")
    assert [
        await try_send_message(client, "a@example.net") for client in (ada, bob, domain_admin)
    ] == [
        [],
        [],
        [],
    ]
    assert len(await load_used_windows(environment)) == 3
    async with (
        environment.write_session() as session
    ):  # the window of another account has no effect
        window = {"id": 7, "per": PER_HOUR, "allowed": 1, "used": 9, "until": environment.now()}
        await (await session.connection()).execute(insert(RateWindow), [window])
    assert await try_send_message(ada, "a@example.net") == ["RATE_LIMITED"]
    await wait_for_background_tasks(environment)


@pytest.fixture
async def submission_listener(
    environment: Environment, tmp_path: Path
) -> AsyncIterator[tuple[Listener, CertificateAuthority]]:
    authority = CertificateAuthority(tmp_path)
    config = SmtpListenerConfig(certificates=CertificateFiles(authority.issue_certificate()))
    listener = Listener(environment, tmp_path / "spool", config, SmtpSubmissionService(environment))
    await listener.start(host="127.0.0.1", port=0)
    yield listener, authority
    await listener.close(1)


async def connect_and_sign_in(
    listener_and_authority: tuple[Listener, CertificateAuthority],
) -> SmtpTestClient:
    """Return a client that has signed in."""
    client = await connect_smtp(listener_and_authority[0].port)
    await start_tls(client, listener_and_authority[1].client_context())
    await sign_in_by_auth_plain(client)
    return client


async def test_smtp_submission_is_deferred_at_mail_command(
    environment: Environment,
    clock: ManualClock,
    submission_listener: tuple[Listener, CertificateAuthority],
) -> None:
    user = await make_user(environment, "ada", password=PASSWORD)
    await set_rate_limit(environment, user.id, Rate(2, PER_HOUR))
    client = await connect_and_sign_in(submission_listener)
    recipients = [f"{n}@example.net" for n in range(3)]
    assert (
        await submit_message(
            client, b"From: ada@example.org\r\nSubject: a\r\n\r\nb\r\n", *recipients
        )
    ).startswith("250")
    other_client = await connect_and_sign_in(submission_listener)
    # while the limit allows it
    await other_client.start_data(*recipients, sender="ada@example.org")
    assert (await submit_message(client)).startswith("250")
    other_client.send_bytes(b"From: ada@example.org\r\nSubject: a\r\n\r\nb\r\n.\r\n")
    answer = "450 4.7.1 Sending limit exceeded: This account can send at most 2 messages per hour"
    assert (await other_client.read_reply()).strip() == answer  # and no second reply
    assert (await client.run_command("MAIL FROM:<ada@example.org>")).strip() == answer
    assert await select_rows(environment, "SELECT count(*) FROM submissions") == [(2,)]
    clock.tick(hours=1)
    assert (await submit_message(client)).startswith("250")
    await wait_for_background_tasks(environment)
    for smtp_client in (client, other_client):
        await smtp_client.close()


async def test_concurrent_smtp_submissions_respect_the_limit(
    environment: Environment, submission_listener: tuple[Listener, CertificateAuthority]
) -> None:
    user = await make_user(environment, "ada", password=PASSWORD)
    await set_rate_limit(environment, user.id, Rate(5, PER_HOUR))
    clients = [await connect_and_sign_in(submission_listener) for _ in range(12)]
    for client in clients:
        await client.start_data("carol@example.net", sender="ada@example.org")
    for client in clients:
        client.send_bytes(b"From: ada@example.org\r\nSubject: a\r\n\r\nb\r\n.\r\n")
    answers = [(await client.read_reply())[:9] for client in clients]
    assert sorted(answers) == ["250 2.0.0"] * 5 + ["450 4.7.1"] * 7
    assert await select_rows(environment, "SELECT count(*) FROM submissions") == [(5,)]
    assert await load_used_windows(environment) == [(user.id, 5)]
    await wait_for_background_tasks(environment)
    for client in clients:
        await client.close()
