"""Reports of success whose process ends before it has made them."""

import asyncio
import time
from dataclasses import replace

import pytest
from sqlalchemy import delete, select, update
from sqlmodel import col

from mail.envelope.delivery_jobs import Result
from mail.envelope.dsn_parameters import ALL, On, Wish
from mail.maintenance import housekeeping
from mail.mime.header_encoding import Named
from mail.queue import pending_reports, recipient_leases
from mail.queue.delivery_results import reported, settle
from models.files.blobs import SubmissionBlob
from models.queue.tables import Delivery
from models.runtime.environment import World
from models.submission.tables import Submission
from tests.conftest import Client, Clock
from tests.mail.delivery.test_address_forwarding import make
from tests.mail.queue.test_dsn_write import asked, fields, newest, parsed, wishing
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


def dying(world: World, place: str = "owed") -> World:
    def fault(where: str) -> None:
        if where == place:
            raise Crash

    return replace(world, fault=fault)


async def delivered(world: World, *names: str) -> bool:
    """Whether mail for these is there, and nobody holds it."""
    rows = await world.database.read(select(col(Delivery.recipient), col(Delivery.delivered_at)))
    found = {row.recipient.partition("@")[0] for row in rows if row.delivered_at is not None}
    return set(names) <= found


async def died(world: World, server: Server, *names: str) -> None:
    """Let a worker end right after it has written that these have their mail."""
    async with working(dying(world), relay(server)):
        await until(lambda: delivered(world, *names))
    assert await owing(world) == len(names)


async def cut_off(ada: Client, world: World) -> int:
    """What carol and dave have been sent, and nobody has reported yet."""
    async with listening(Server()) as there:
        key = await asked(ada)
        await died(world, there, "carol", "dave")
    return key


async def owing(world: World) -> int:
    asked_ = select(col(Delivery.id)).where(col(Delivery.success_owed).is_not(None))
    return len(await world.database.read(asked_))


async def nothing_owed(world: World) -> bool:
    return not await owing(world)


async def looked_twice(world: World) -> None:
    """Look for owed reports until those are made that no worker is making."""
    await pending_reports.make_good(world, await pending_reports.make_good(world, ()))


async def test_who_looks_later_makes_the_report_once(
    ada: Client, world: World, clock: Clock
) -> None:
    async with listening(Server()) as there:
        key = await asked(ada)
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
        pace = replace(PACE, owed=0.1)
        async with working(world, relay(there), pace), working(world, relay(there), pace):
            await until(lambda: nothing_owed(world))
        async with working(world, relay(there)):
            await asyncio.sleep(0.2)
    assert len(there.mails) == 1
    (letter,) = await inbox(ada)
    assert (letter.subject, letter.envelope_from) == ("Your message went on", "")
    about, (carol, dave) = fields(parsed(await newest(ada)))
    assert about["Reporting-MTA"] == "dns; mx.example.org"
    assert (carol["Final-Recipient"], carol["Action"]) == ("rfc822; carol@example.net", "relayed")
    assert dave["Status"] == "2.0.0"
    assert b"Subject: Hello" in await newest(ada)


async def test_a_worker_finds_it_while_it_runs(ada: Client, world: World, clock: Clock) -> None:
    """At its second look, whatever the time of day is: till then another may be making it."""
    pace = replace(PACE, owed=3.0)
    async with listening(Server()) as there:
        await asked(ada)
        await died(world, there, "carol", "dave")
        begun = time.monotonic()
        async with working(world, relay(there), pace):
            clock.tick(hours=1)
            await asyncio.sleep(0.3)
            assert await inbox(ada) == []
            clock.tick(hours=-2)
            await until(lambda: nothing_owed(world))
        assert time.monotonic() - begun >= pace.owed
    assert len(await inbox(ada)) == 1


async def test_who_was_only_slow_reports_nothing_that_another_has(
    ada: Client, world: World, clock: Clock
) -> None:
    await asked(ada)
    (job,) = (await recipient_leases.claim(world, PACE)).jobs
    results = {to.delivery_id: Result(State.RELAYED, 250, "OK") for to in job.recipients}
    with pytest.raises(Crash):
        await settle(dying(world), job, results, b"")
    clock.tick(minutes=3)
    await looked_twice(world)
    assert len(await inbox(ada)) == 1
    await reported(world, job, {}, {On.SUCCESS: results}, b"")  # it goes on where it stopped
    assert len(await inbox(ada)) == 1


async def test_two_who_look_at_once_make_one(ada: Client, world: World, clock: Clock) -> None:
    async with listening(Server()) as there:
        await asked(ada)
        await died(world, there, "carol", "dave")
    clock.tick(minutes=3)
    await asyncio.gather(*(looked_twice(world) for _ in range(3)))
    assert len(await inbox(ada)) == 1


async def test_what_is_refused_beside_it_is_told_of_as_ever(
    ada: Client, world: World, clock: Clock
) -> None:
    """The end comes before the refusal is written: that recipient is tried again."""
    async with listening(Server({"dave": "550 5.1.1 No"})) as there:
        key = await asked(ada)
        await died(world, there, "carol")
        clock.tick(minutes=3)
        async with working(world, relay(there), replace(PACE, owed=0.2)):
            await until(lambda: is_now(world, key, "dave", State.BOUNCED))
            await until(lambda: nothing_owed(world))
    subjects = sorted(letter.subject for letter in await inbox(ada))
    assert subjects == ["Your message could not be delivered", "Your message went on"]


async def test_what_came_to_people_here_is_told_as_that(
    ada: Client, bob: Client, world: World, clock: Clock
) -> None:
    await make(world, "list", "far@far.example", bob.address)
    async with listening(Server()) as there:
        await asked(ada, Named(bob.address), Named("list@example.org"))
        await died(world, there, "bob", "list")
    clock.tick(minutes=3)
    await looked_twice(world)
    assert [letter.subject for letter in await inbox(ada)] == [
        "Your message was delivered",
        "Your message went on",
    ]
    _, (row,) = fields(parsed(await newest(ada)))
    assert (row["Action"], row["Status"]) == ("expanded", "2.0.0")


async def test_who_sent_from_elsewhere_is_written_to(
    ada: Client, world: World, clock: Clock
) -> None:
    """The platform sends it on for an address that forwards: nobody's INBOX hears of it."""
    key = await wishing(ada, ALL, sender="far@far.example")
    async with world.write(ada.user.id) as session:
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
    ada: Client, world: World, clock: Clock, how: str
) -> None:
    wish = Wish() if how == "unasked" else ALL
    key = await wishing(ada, wish, sender="" if how == "nobody" else "ada@example.org")
    if how == "copy":
        async with world.write(ada.user.id) as session:
            this = update(Submission).where(col(Submission.id) == key)
            await session.exec(this.values(copy_of=1))
    async with listening(Server()) as there, working(dying(world), relay(there)):
        await settled(world, key)
    assert await owing(world) == 0
    clock.tick(minutes=3)
    await looked_twice(world)
    assert await inbox(ada) == []


async def test_its_bytes_are_kept_until_it_is_made(ada: Client, world: World, clock: Clock) -> None:
    key = await cut_off(ada, world)
    clock.tick(minutes=3)
    needs = select(col(SubmissionBlob.blob_id)).where(col(SubmissionBlob.submission_id) == key)
    await housekeeping.tidy(world)
    assert await world.database.read(needs)
    await looked_twice(world)
    await housekeeping.tidy(world)
    assert not await world.database.read(needs)


async def test_without_its_bytes_it_is_told_all_the_same(
    ada: Client, world: World, clock: Clock
) -> None:
    key = await cut_off(ada, world)
    async with world.write(ada.user.id) as session:
        mine = col(SubmissionBlob.submission_id) == key
        await session.exec(delete(SubmissionBlob).where(mine))
        await session.exec(update(Submission).where(col(Submission.id) == key).values(blob_id=1))
    clock.tick(minutes=3)
    await looked_twice(world)
    assert len(list(parsed(await newest(ada)).iter_parts())) == 2


async def test_what_failed_behind_it_meanwhile_is_not_told_as_a_success(
    ada: Client, world: World, clock: Clock
) -> None:
    key = await cut_off(ada, world)
    async with world.write(ada.user.id) as session:
        carol = col(Delivery.recipient) == "carol@example.net"
        this = update(Delivery).where(col(Delivery.submission_id) == key, carol)
        await session.exec(this.values(state=State.BOUNCED))
    clock.tick(minutes=3)
    await looked_twice(world)
    _, (row,) = fields(parsed(await newest(ada)))
    assert row["Final-Recipient"] == "rfc822; dave@example.net"
    assert await owing(world) == 0
