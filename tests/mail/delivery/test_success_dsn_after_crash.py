"""Reports of success whose process ends before it has made them."""

import asyncio
import time
from dataclasses import replace

import pytest
from sqlalchemy import delete, select, update
from sqlmodel import col

from mail.envelope.delivery_jobs import DeliveryResult
from mail.envelope.dsn_parameters import ALL_REPORTS, DsnRequest, NotifyCondition
from mail.maintenance import housekeeping
from mail.mime.header_encoding import NamedAddress
from mail.queue import pending_reports, recipient_leases
from mail.queue.delivery_results import record_and_report, record_results
from models.files.blobs import SubmissionBlob
from models.queue.tables import QueueEntry
from models.runtime.environment import Environment
from models.submission.tables import Submission
from tests.conftest import Client, Clock
from tests.support.mail.dsn_messages import (
    dsn_fields,
    send_with_dsn_request,
    submit_with_dsn_request,
)
from tests.support.mail.forwarding_addresses import add_forwarding_address
from tests.support.mail.parsed_messages import parse_smtp_message
from tests.support.mail.stored_messages import newest_inbox_message
from tests.support.mail_servers.queue_worker import (
    PACE,
    State,
    bodies,
    deliveries,
    inbox,
    is_now,
    relay,
    settled,
    until,
    working,
)
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening


class Crash(BaseException):
    """The process ends here."""


def dying(world: Environment, place: str = "owed") -> Environment:
    def fault(where: str) -> None:
        if where == place:
            raise Crash

    return replace(world, reach_fault_point=fault)


async def delivered(world: Environment, *names: str) -> bool:
    """Whether mail for these is there, and nobody holds it."""
    rows = await world.database.read(
        select(col(QueueEntry.recipient), col(QueueEntry.delivered_at))
    )
    found = {row.recipient.partition("@")[0] for row in rows if row.delivered_at is not None}
    return set(names) <= found


async def died(world: Environment, server: Server, *names: str) -> None:
    """Let a worker end right after it has written that these have their mail."""
    async with working(dying(world), relay(server)):
        await until(lambda: delivered(world, *names))
    assert await owing(world) == len(names)


async def cut_off(ada: Client, world: Environment) -> int:
    """What carol and dave have been sent, and nobody has reported yet."""
    async with listening(Server()) as there:
        key = await send_with_dsn_request(ada)
        await died(world, there, "carol", "dave")
    return key


async def owing(world: Environment) -> int:
    asked_ = select(col(QueueEntry.id)).where(col(QueueEntry.success_owed).is_not(None))
    return len(await world.database.read(asked_))


async def nothing_owed(world: Environment) -> bool:
    return not await owing(world)


async def looked_twice(world: Environment) -> None:
    """Look for owed reports until those are made that no worker is making."""
    await pending_reports.send_owed_reports(
        world, await pending_reports.send_owed_reports(world, ())
    )


async def test_who_looks_later_makes_the_report_once(
    ada: Client, world: Environment, clock: Clock
) -> None:
    async with listening(Server()) as there:
        key = await send_with_dsn_request(ada)
        await died(world, there, "carol", "dave")
        rows = await deliveries(world, key)
        assert {(row.state, row.success_owed) for row in rows.values()} == {
            (State.RELAYED, "relayed")
        }
        assert await inbox(ada) == []
        async with working(world, relay(there)):  # it may be at it still
            await asyncio.sleep(0.2)
            assert await inbox(ada) == []
        clock.tick(hours=-1)
        pace = replace(PACE, report_poll_interval=0.1)
        async with working(world, relay(there), pace), working(world, relay(there), pace):
            await until(lambda: nothing_owed(world))
        async with working(world, relay(there)):
            await asyncio.sleep(0.2)
    assert len(there.mails) == 1
    (letter,) = await inbox(ada)
    assert (letter.subject, letter.envelope_from) == ("Your message went on", "")
    about, (carol, dave) = dsn_fields(parse_smtp_message(await newest_inbox_message(ada)))
    assert about["Reporting-MTA"] == "dns; mx.example.org"
    assert (carol["Final-Recipient"], carol["Action"]) == ("rfc822; carol@example.net", "relayed")
    assert dave["Status"] == "2.0.0"
    assert b"Subject: Hello" in await newest_inbox_message(ada)


async def test_a_worker_finds_it_while_it_runs(
    ada: Client, world: Environment, clock: Clock
) -> None:
    """At its second look, whatever the time of day is: till then another may be making it."""
    pace = replace(PACE, report_poll_interval=3.0)
    async with listening(Server()) as there:
        await send_with_dsn_request(ada)
        await died(world, there, "carol", "dave")
        begun = time.monotonic()
        async with working(world, relay(there), pace):
            clock.tick(hours=1)
            await asyncio.sleep(0.3)
            assert await inbox(ada) == []
            clock.tick(hours=-2)
            await until(lambda: nothing_owed(world))
        assert time.monotonic() - begun >= pace.report_poll_interval
    assert len(await inbox(ada)) == 1


async def test_who_was_only_slow_reports_nothing_that_another_has(
    ada: Client, world: Environment, clock: Clock
) -> None:
    await send_with_dsn_request(ada)
    (job,) = (await recipient_leases.claim_due_jobs(world, PACE)).jobs
    results = {to.delivery_id: DeliveryResult(State.RELAYED, 250, "OK") for to in job.recipients}
    with pytest.raises(Crash):
        await record_results(dying(world), job, results, b"")
    clock.tick(minutes=3)
    await looked_twice(world)
    assert len(await inbox(ada)) == 1
    await record_and_report(
        world, job, {}, {NotifyCondition.SUCCESS: results}, b""
    )  # it goes on where it stopped
    assert len(await inbox(ada)) == 1


async def test_two_who_look_at_once_make_one(ada: Client, world: Environment, clock: Clock) -> None:
    async with listening(Server()) as there:
        await send_with_dsn_request(ada)
        await died(world, there, "carol", "dave")
    clock.tick(minutes=3)
    await asyncio.gather(*(looked_twice(world) for _ in range(3)))
    assert len(await inbox(ada)) == 1


async def test_what_is_refused_beside_it_is_told_of_as_ever(
    ada: Client, world: Environment, clock: Clock
) -> None:
    """The end comes before the refusal is written: that recipient is tried again."""
    async with listening(Server({"dave": "550 5.1.1 No"})) as there:
        key = await send_with_dsn_request(ada)
        await died(world, there, "carol")
        clock.tick(minutes=3)
        async with working(world, relay(there), replace(PACE, report_poll_interval=0.2)):
            await until(lambda: is_now(world, key, "dave", State.BOUNCED))
            await until(lambda: nothing_owed(world))
    subjects = sorted(letter.subject for letter in await inbox(ada))
    assert subjects == ["Your message could not be delivered", "Your message went on"]


async def test_what_came_to_people_here_is_told_as_that(
    ada: Client, bob: Client, world: Environment, clock: Clock
) -> None:
    await add_forwarding_address(world, "list", "far@far.example", bob.address)
    async with listening(Server()) as there:
        await send_with_dsn_request(
            ada, NamedAddress(bob.address), NamedAddress("list@example.org")
        )
        await died(world, there, "bob", "list")
    clock.tick(minutes=3)
    await looked_twice(world)
    assert [letter.subject for letter in await inbox(ada)] == [
        "Your message was delivered",
        "Your message went on",
    ]
    _, (row,) = dsn_fields(parse_smtp_message(await newest_inbox_message(ada)))
    assert (row["Action"], row["Status"]) == ("expanded", "2.0.0")


async def test_who_sent_from_elsewhere_is_written_to(
    ada: Client, world: Environment, clock: Clock
) -> None:
    """The platform sends it on for an address that forwards: nobody's INBOX hears of it."""
    key = await submit_with_dsn_request(ada, ALL_REPORTS, sender="far@far.example")
    async with world.write_session(ada.user.id) as session:
        await session.exec(update(Submission).where(col(Submission.id) == key).values(user_id=None))
    async with listening(Server()) as there:
        await died(world, there, "carol", "dave")
    clock.tick(minutes=3)
    await looked_twice(world)
    assert await inbox(ada) == []
    report = (await bodies(world))[-1]
    assert b"Action: relayed" in report
    assert b"To: far@far.example" in report
    assert await owing(world) == 0


@pytest.mark.parametrize("how", ["nobody", "copy", "unasked"])
async def test_nobody_else_is_owed_anything(
    ada: Client, world: Environment, clock: Clock, how: str
) -> None:
    wish = DsnRequest() if how == "unasked" else ALL_REPORTS
    key = await submit_with_dsn_request(
        ada, wish, sender="" if how == "nobody" else "ada@example.org"
    )
    if how == "copy":
        async with world.write_session(ada.user.id) as session:
            this = update(Submission).where(col(Submission.id) == key)
            await session.exec(this.values(copy_of=1))
    async with listening(Server()) as there, working(dying(world), relay(there)):
        await settled(world, key)
    assert await owing(world) == 0
    clock.tick(minutes=3)
    await looked_twice(world)
    assert await inbox(ada) == []


async def test_its_bytes_are_kept_until_it_is_made(
    ada: Client, world: Environment, clock: Clock
) -> None:
    key = await cut_off(ada, world)
    clock.tick(minutes=3)
    needs = select(col(SubmissionBlob.blob_id)).where(col(SubmissionBlob.submission_id) == key)
    await housekeeping.run_round(world)
    assert await world.database.read(needs)
    await looked_twice(world)
    await housekeeping.run_round(world)
    assert not await world.database.read(needs)


async def test_without_its_bytes_it_is_told_all_the_same(
    ada: Client, world: Environment, clock: Clock
) -> None:
    key = await cut_off(ada, world)
    async with world.write_session(ada.user.id) as session:
        mine = col(SubmissionBlob.submission_id) == key
        await session.exec(delete(SubmissionBlob).where(mine))
        await session.exec(update(Submission).where(col(Submission.id) == key).values(blob_id=1))
    clock.tick(minutes=3)
    await looked_twice(world)
    assert len(list(parse_smtp_message(await newest_inbox_message(ada)).iter_parts())) == 2


async def test_what_failed_behind_it_meanwhile_is_not_told_as_a_success(
    ada: Client, world: Environment, clock: Clock
) -> None:
    key = await cut_off(ada, world)
    async with world.write_session(ada.user.id) as session:
        carol = col(QueueEntry.recipient) == "carol@example.net"
        this = update(QueueEntry).where(col(QueueEntry.submission_id) == key, carol)
        await session.exec(this.values(state=State.BOUNCED))
    clock.tick(minutes=3)
    await looked_twice(world)
    _, (row,) = dsn_fields(parse_smtp_message(await newest_inbox_message(ada)))
    assert row["Final-Recipient"] == "rfc822; dave@example.net"
    assert await owing(world) == 0
