"""Sending rates in force: on all roads, in all processes, exactly, and told once."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import insert

from mail.limits import sending_rates
from mail.maintenance import housekeeping
from mail.smtp.smtp_server import SmtpListenerConfig
from mail.smtp.submission_server import SubmissionListener as Listener
from mail.tls.server_tls import CertificateFiles
from models.errors import RateLimited
from models.queue.rate_limits import RateLimit, RateWindow
from models.queue.rate_values import Rate, RateFrame, parse_rate
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import insert_with_conflict
from models.store.database import Database
from models.users.roles import Scope
from models.users.tables import User
from resolvers.auth.authentication import wait_for_background_tasks
from resolvers.submission.smtp_submission import SmtpSubmissionService
from tests.conftest import Client, Clock, make_key, make_user, receive
from tests.support.accounts.quota_accounts import send, told
from tests.support.accounts.user_operations import chief, create
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.mail_servers.smtp_client import Authority, connect, secured
from tests.support.mail_servers.submission_client import (
    PASSWORD,
    sign_in_by_auth_plain,
    submit_message,
)
from tests.support.operations.quarantine_operations import set_options
from tests.support.stores.counter_check import rows

pytestmark = pytest.mark.usefixtures("examined")

SEND = """
mutation ($input: MessageSendInput!) { messageSend(input: $input) {
  submission { id } errors { code message ... on RateLimitedError { retryAfter } } } }
"""
FORWARD = """
mutation ($input: MessageForwardInput!) { messageForward(input: $input) { errors { code } } }
"""
HOUR = RateFrame.HOUR


async def limit(world: Environment, key: int, rate: Rate, column: str = "user_id") -> None:
    """Give an account or domain a rate."""
    now = world.now()
    values = {"value": rate.value, "frame": rate.frame, "updated_at": now}
    new = insert_with_conflict(world.database.dialect, RateLimit)
    new = new.values(id=key, created_at=now, **values, **{column: key})
    async with world.write_session() as session:
        put = new.on_conflict_do_update(index_elements=["id"], set_=values)
        await (await session.connection()).execute(put)


async def refused(client: Client) -> Any:
    """The refusal of a message."""
    message = {"to": [{"address": "z@example.net"}], "subject": "Hi", "text": "Yo"}
    answer = (await client(SEND, input=message))["messageSend"]
    assert answer["submission"] is None
    (error,) = answer["errors"]
    return error


async def elsewhere(root: Client) -> Client:
    """A user of another domain."""
    world = root.world
    await create(root, username="far", address="far@afar.example")
    row = (await rows(world, "SELECT id FROM users WHERE username = 'far'"))[0]
    async with world.write_session() as session:
        user = await session.get_one(User, row[0])
    secret = await make_key(world, "far", user_id=user.id, role=user.role, scopes=[Scope.MASTER])
    return Client(root.http, world, user, secret)


async def counted(world: Environment) -> list[Any]:
    return await rows(world, "SELECT id, used FROM rate_windows ORDER BY id")


async def test_an_account_sends_so_many_messages_in_a_time_whoever_they_go_to(
    ada: Client, clock: Clock
) -> None:
    world = ada.world
    await limit(world, ada.user.id, Rate(2, HOUR))
    assert await send(ada, "a@example.net", "b@example.net", "c@example.net") == []
    assert await send(ada, "a@example.net", isDraft=True) == []  # goes nowhere
    clock.tick(minutes=59)
    assert await send(ada, "a@example.net") == []
    kept = await rows(world, "SELECT count(*) FROM messages")
    assert await refused(ada) == {
        "code": "RATE_LIMITED",
        "message": "this account may send 2 messages an hour",
        "retryAfter": "PT60S",
    }
    assert await rows(world, "SELECT count(*) FROM submissions") == [(2,)]
    assert await rows(world, "SELECT count(*) FROM messages") == kept
    ((used,),) = await rows(world, "SELECT used FROM usages WHERE kind = 'RECIPIENTS'")
    assert used == 4
    clock.tick(minutes=1)
    assert await send(ada, "a@example.net") == []  # a time of its own begins
    assert await counted(world) == [(ada.user.id, 1)]
    await wait_for_background_tasks(world)


@pytest.mark.parametrize("frame", RateFrame)
async def test_each_time_is_as_long_as_it_says(ada: Client, clock: Clock, frame: RateFrame) -> None:
    await limit(ada.world, ada.user.id, Rate(1, frame))
    assert await send(ada, "a@example.net") == []
    assert (await refused(ada))["retryAfter"] == {
        "SECOND": "PT1S", "MINUTE": "PT60S", "HOUR": "PT3600S", "DAY": "P1D"
    }[frame]  # fmt: skip
    await wait_for_background_tasks(ada.world)
    clock.tick(seconds=frame.seconds - 0.001)
    assert await send(ada, "a@example.net") == ["RATE_LIMITED"]
    clock.tick(seconds=0.001)
    assert await send(ada, "a@example.net") == []
    await wait_for_background_tasks(ada.world)


async def test_a_message_must_pass_account_domain_and_platform(
    ada: Client, bob: Client, root: Client, clock: Clock
) -> None:
    world, domain = ada.world, ada.user.domain_id or 0
    far = await elsewhere(root)
    set_options(world, rate_platform="4/DAY")
    await limit(world, domain, Rate(3, HOUR), "domain_id")
    await limit(world, ada.user.id, Rate(2, RateFrame.MINUTE))
    assert [await send(ada, "a@example.net") for _ in range(3)] == [[], [], ["RATE_LIMITED"]]
    assert await send(bob, "a@example.net") == []
    text = "all accounts of the domain together may send 3 messages an hour"
    assert (await refused(bob))["message"] == text
    clock.tick(minutes=1)
    assert (await refused(ada))["message"] == text  # the own one has room again
    assert await send(far, "a@example.net") == []
    text = "all accounts together may send 4 messages a day"
    assert (await refused(far))["message"] == text
    clock.tick(hours=1)
    assert (await refused(bob))["message"] == text
    await wait_for_background_tasks(world)
    assert await counted(world) == sorted([(0, 4), (domain, 3), (ada.user.id, 2)])


async def test_settings_say_what_is_not_set(ada: Client, bob: Client) -> None:
    world = ada.world
    set_options(world, rate_user="1/HOUR", rate_domain="3/HOUR")
    await limit(world, bob.user.id, Rate(0, HOUR))  # any number, but for the domain's
    assert [await send(ada, "a@example.net") for _ in range(2)] == [[], ["RATE_LIMITED"]]
    assert [await send(bob, "a@example.net") for _ in range(3)] == [[], [], ["RATE_LIMITED"]]
    await wait_for_background_tasks(world)
    assert parse_rate("5/SECOND") == Rate(5, RateFrame.SECOND)
    assert [parse_rate(text).value for text in ("", "0/HOUR", "5/WEEK", "1 /HOUR", "x")] == [0] * 5


async def test_another_time_counts_afresh_and_another_number_does_not(ada: Client) -> None:
    world = ada.world
    await limit(world, ada.user.id, Rate(1, HOUR))
    assert [await send(ada, "a@example.net") for _ in range(2)] == [[], ["RATE_LIMITED"]]
    await limit(world, ada.user.id, Rate(2, HOUR))
    assert [await send(ada, "a@example.net") for _ in range(2)] == [[], ["RATE_LIMITED"]]
    await limit(world, ada.user.id, Rate(1, RateFrame.DAY))
    assert [await send(ada, "a@example.net") for _ in range(2)] == [[], ["RATE_LIMITED"]]
    await wait_for_background_tasks(world)


async def test_what_is_forwarded_and_scheduled_counts_and_automatic_mail_does_not(
    ada: Client, clock: Clock
) -> None:
    await limit(ada.world, ada.user.id, Rate(2, HOUR))
    key = (await receive(ada, "Hello")).message_id
    (node,) = (await ada("{ user { messages { nodes { id } } } }"))["user"]["messages"]["nodes"]
    assert key
    given = {"message": {"id": node["id"]}, "addresses": ["a@example.net"]}
    at = (clock() + timedelta(days=2)).isoformat()
    assert (await ada(FORWARD, input=given))["messageForward"]["errors"] == []
    assert await send(ada, "b@example.net", sendTime=at) == []
    answer = (await ada(FORWARD, input=given))["messageForward"]
    assert answer["errors"] == [{"code": "RATE_LIMITED"}]
    assert await send(ada, "b@example.net", sendTime=at) == ["RATE_LIMITED"]
    ((forwarded,),) = await rows(ada.world, "SELECT count(*) FROM submissions")
    assert forwarded == 2
    await wait_for_background_tasks(ada.world)


async def test_of_many_at_once_no_more_are_sent_than_may(ada: Client, bob: Client) -> None:
    world = ada.world
    await limit(world, ada.user.id, Rate(7, HOUR))
    await limit(world, ada.user.domain_id or 0, Rate(17, HOUR), "domain_id")
    both = [ada, bob] * 25
    answers = await asyncio.gather(*(send(one, f"{n}@example.net") for n, one in enumerate(both)))
    sent = [one.user.id for one, errors in zip(both, answers, strict=True) if errors == []]
    assert (len(sent), sent.count(ada.user.id) <= 7) == (17, True)
    assert await rows(world, "SELECT count(*) FROM submissions") == [(17,)]
    found = dict(await counted(world))
    assert found[ada.user.domain_id] == 17
    assert found[ada.user.id] == sent.count(ada.user.id)
    await wait_for_background_tasks(world)


async def test_processes_share_what_is_counted_and_a_restart_keeps_it(
    ada: Client, database: Database
) -> None:
    world = ada.world
    await limit(world, ada.user.id, Rate(20, HOUR))
    other = Database(database.url)  # another process has its own connections

    async def one(database: Database) -> bool:
        near = Environment(
            database,
            world.object_store,
            signing_secret=b"s" * 32,
            options=world.options,
            now=world.now,
        )

        def unit(turn: DatabaseTransaction) -> None:
            if full := sending_rates.count_messages(turn, ada.user.id):
                raise full.rate_limited_error(turn.environment.now())

        try:
            await near.run_transaction(unit, ada.user.id)
        except RateLimited:
            return False
        return True

    try:
        passed = await asyncio.gather(*(one(each) for _ in range(25) for each in (database, other)))
    finally:
        await other.close()
    assert sum(passed) == 20
    again = Database(database.url)
    try:
        assert not await one(again)
    finally:
        await again.close()
    assert await counted(world) == [(ada.user.id, 20)]


async def test_an_account_is_told_once_in_a_time_that_it_was_held_up(
    ada: Client, clock: Clock
) -> None:
    world = ada.world
    await limit(world, ada.user.id, Rate(1, HOUR))
    await send(ada, "a@example.net")
    for _ in range(3):
        assert await send(ada, "a@example.net") == ["RATE_LIMITED"]
        await wait_for_background_tasks(world)
    assert await told(ada) == [("RATE", "FULL", 1, 1, True)]
    clock.tick(hours=1)
    await send(ada, "a@example.net")
    assert await send(ada, "a@example.net") == ["RATE_LIMITED"]
    await wait_for_background_tasks(world)
    assert len(await told(ada)) == 2


async def test_of_short_times_an_account_is_told_once_in_a_minute(
    ada: Client, clock: Clock
) -> None:
    world = ada.world
    await limit(world, ada.user.id, Rate(1, RateFrame.SECOND))
    for _ in range(59):
        await send(ada, "a@example.net")
        assert await send(ada, "a@example.net") == ["RATE_LIMITED"]
        await wait_for_background_tasks(world)
        clock.tick(seconds=1)
    assert len(await told(ada)) == 1
    clock.tick(seconds=1)
    await send(ada, "a@example.net")
    assert await send(ada, "a@example.net") == ["RATE_LIMITED"]
    await wait_for_background_tasks(world)
    assert len(await told(ada)) == 2


async def test_a_trial_counts_nothing_and_is_refused_all_the_same(ada: Client) -> None:
    world, trial = ada.world, {"options": {"validateOnly": True}}
    await limit(world, ada.user.id, Rate(1, HOUR))
    assert await send(ada, "a@example.net", **trial) == []
    assert await counted(world) == []
    assert await send(ada, "a@example.net") == []
    assert await send(ada, "a@example.net", **trial) == ["RATE_LIMITED"]
    await wait_for_background_tasks(world)
    assert (await told(ada), await counted(world)) == ([], [(ada.user.id, 1)])


async def test_times_that_are_over_are_swept_away(ada: Client, clock: Clock) -> None:
    world = ada.world
    await limit(world, ada.user.id, Rate(1, HOUR))
    await send(ada, "a@example.net")
    await send(ada, "a@example.net")
    await wait_for_background_tasks(world)
    done = await housekeeping.run_round(world)
    assert (done.windows, done.holds) == (0, 0)
    clock.tick(hours=1)
    done = await housekeeping.run_round(world)
    assert (done.windows, done.holds) == (1, 1)
    assert await counted(world) == []


async def test_without_any_rate_nothing_is_written(ada: Client, statements: list[str]) -> None:
    await send(ada, "a@example.net")
    del statements[:]
    await send(ada, "a@example.net")
    about = [one for one in statements if "rate_" in one]
    assert len(about) == 2
    assert await counted(ada.world) == []


async def test_many_domains_and_accounts_count_apart(
    root: Client, ada: Client, bob: Client
) -> None:
    world = root.world
    await create(root, username="x", address="x@afar.example")
    chief_ = await chief(root, domain="afar.example")
    set_options(world, rate_user="1/HOUR")
    assert [await send(one, "a@example.net") for one in (ada, bob, chief_)] == [[], [], []]
    assert len(await counted(world)) == 3
    async with world.write_session() as session:  # another account's window is nothing to this one
        window = {"id": 7, "frame": HOUR, "allowed": 1, "used": 9, "until": world.now()}
        await (await session.connection()).execute(insert(RateWindow), [window])
    assert await send(ada, "a@example.net") == ["RATE_LIMITED"]
    await wait_for_background_tasks(world)


# ---------------------------------------------------------------- SMTP


@pytest.fixture
async def submission(
    world: Environment, tmp_path: Path
) -> AsyncIterator[tuple[Listener, Authority]]:
    authority = Authority(tmp_path)
    terms = SmtpListenerConfig(certificates=CertificateFiles(authority.issue()))
    made = Listener(world, tmp_path / "spool", terms, SmtpSubmissionService(world))
    await made.start(host="127.0.0.1", port=0)
    yield made, authority
    await made.close(1)


async def entered(submission: tuple[Listener, Authority]) -> Neighbour:
    """A client that has signed in."""
    client = await connect(submission[0].port)
    await secured(client, submission[1].client())
    await sign_in_by_auth_plain(client)
    return client


async def test_a_mail_program_is_put_off_before_it_hands_anything_over(
    world: Environment, clock: Clock, submission: tuple[Listener, Authority]
) -> None:
    user = await make_user(world, "ada", password=PASSWORD)
    await limit(world, user.id, Rate(2, HOUR))
    client = await entered(submission)
    to = [f"{n}@example.net" for n in range(3)]
    assert (
        await submit_message(client, b"From: ada@example.org\r\nSubject: a\r\n\r\nb\r\n", *to)
    ).startswith("250")
    other = await entered(submission)
    await other.begin(*to, sender="ada@example.org")  # while there is room
    assert (await submit_message(client)).startswith("250")
    other.send(b"From: ada@example.org\r\nSubject: a\r\n\r\nb\r\n.\r\n")
    answer = "450 4.7.1 this account may send 2 messages an hour"
    assert (await other.hear()).strip() == answer  # and none in its place
    assert (await client.say("MAIL FROM:<ada@example.org>")).strip() == answer
    assert await rows(world, "SELECT count(*) FROM submissions") == [(2,)]
    clock.tick(hours=1)
    assert (await submit_message(client)).startswith("250")
    await wait_for_background_tasks(world)
    for one in (client, other):
        await one.close()


async def test_of_many_programs_at_once_no_more_get_through_than_may(
    world: Environment, submission: tuple[Listener, Authority]
) -> None:
    user = await make_user(world, "ada", password=PASSWORD)
    await limit(world, user.id, Rate(5, HOUR))
    clients = [await entered(submission) for _ in range(12)]
    for client in clients:
        await client.begin("carol@example.net", sender="ada@example.org")
    for client in clients:
        client.send(b"From: ada@example.org\r\nSubject: a\r\n\r\nb\r\n.\r\n")
    answers = [(await client.hear())[:9] for client in clients]
    assert sorted(answers) == ["250 2.0.0"] * 5 + ["450 4.7.1"] * 7
    assert await rows(world, "SELECT count(*) FROM submissions") == [(5,)]
    assert await counted(world) == [(user.id, 5)]
    await wait_for_background_tasks(world)
    for client in clients:
        await client.close()
