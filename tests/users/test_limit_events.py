"""Limits that are reached: what the journal tells, and how often."""

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import update

from mail.delivery import local_delivery
from mail.envelope.delivery_jobs import DeliveryJob, JobRecipient
from mail.smtp import lmtp
from models.domains.tables import Domain
from models.errors import OverQuota
from models.runtime.environment import CommittedOptions, Environment
from resolvers.auth.authentication import wait_for_background_tasks
from tests.conftest import Client, Clock, receive
from tests.support.accounts.quota_accounts import (
    QUOTA,
    Told,
    accepted,
    bounded,
    fill,
    letters,
    send,
    storage,
    told,
    weighing,
)
from tests.support.accounts.user_operations import costs_of_users
from tests.support.mail_servers.lmtp_client import connect
from tests.support.operations.bulk_operations import DELETE, TAKE_BACK, UPLOAD
from tests.support.servers.live_server import House, until


@pytest.mark.parametrize(
    ("before", "size", "expected"),
    [
        (7_000, 999, []),
        (7_000, 1_000, [storage("WARNING", 8_000)]),
        (7_000, 1_001, [storage("WARNING", 8_001)]),
        (7_000, 2_499, [storage("WARNING", 9_499)]),
        (7_000, 2_500, [storage("CRITICAL", 9_500)]),  # one row, of two marks
        (7_000, 3_000, [storage("FULL", 10_000)]),
        (7_999, 1_499, [storage("WARNING", 9_498)]),
        (8_000, 1_499, [storage("WARNING", 8_000)]),  # and nothing more
        (8_000, 1_500, [storage("WARNING", 8_000), storage("CRITICAL", 9_500)]),
        (9_500, 499, [storage("CRITICAL", 9_500)]),
        (9_500, 500, [storage("CRITICAL", 9_500), storage("FULL", 10_000)]),
    ],
)
async def test_storage_that_passes_a_mark_is_told_once(
    ada: Client, before: int, size: int, expected: list[Told]
) -> None:
    await bounded(ada, quota=QUOTA)
    await fill(ada, before, size)
    assert await told(ada) == expected
    assert await letters(ada.world) == len(expected)


async def test_nobody_without_a_limit_hears_of_it(ada: Client) -> None:
    await bounded(ada, quota=0, received_max=0, recipients=0)
    await fill(ada, 5_000, 5_000)
    assert await send(ada, "a@example.net") == []
    assert (await told(ada), await letters(ada.world)) == ([], 0)


@pytest.mark.usefixtures("examined")
async def test_of_many_deliveries_at_once_one_passes_the_mark(ada: Client) -> None:
    await bounded(ada, quota=QUOTA)
    await fill(ada, 5_000)
    await asyncio.gather(*(fill(ada, 500) for _ in range(8)))  # to 9,000
    assert await told(ada) == [storage("WARNING", 8_000)]
    assert await letters(ada.world) == 1


async def test_a_delivery_that_passes_nothing_costs_what_it_did(
    ada: Client, statements: list[str]
) -> None:
    await bounded(ada, quota=QUOTA)
    costs: list[int] = []
    for size in (1_000, 6_000, 500, 500, 500):  # the fourth is at the mark
        raw, before = weighing(size, f"{size} {len(costs)}"), len(statements)
        await receive(ada, raw)
        sent = statements[before:]
        costs.append(len(sent))
        assert sum("UPDATE users" in one for one in sent) == (2 if len(costs) == 4 else 1)
    assert costs[0] == costs[1] == costs[2] == costs[4]
    assert costs[3] == costs[0] + 6  # two rows of the journal and their numbers, task, account


@pytest.mark.usefixtures("examined")
async def test_what_falls_below_a_mark_and_passes_it_again_is_told_again(ada: Client) -> None:
    await bounded(ada, quota=QUOTA)
    await fill(ada, 7_500, 600)
    await fill(ada, 600)  # above it
    found = await ada("{ viewer { user { messages(first: 2) { nodes { id } } } } }")
    newest = [node["id"] for node in found["viewer"]["user"]["messages"]["nodes"]]
    deleted = await ada(DELETE, input={"select": {"ids": newest}})
    assert len(await told(ada)) == 1
    await fill(ada, 600)
    assert await told(ada) == [storage("WARNING", 8_100)] * 2
    assert await letters(ada.world) == 2
    # what is brought back counts again
    undo = await ada(TAKE_BACK, token=deleted["messageDelete"]["undo"]["token"])
    assert undo["undo"]["errors"] == []
    await fill(ada, 300)
    assert (await told(ada))[2:] == [storage("CRITICAL", 9_600)]


@pytest.mark.usefixtures("examined")
async def test_what_is_brought_back_may_pass_a_mark(ada: Client) -> None:
    await bounded(ada, quota=QUOTA)
    await fill(ada, 7_000, 2_000)
    select = {"select": {"mailbox": {"path": "INBOX"}, "uids": "1"}}
    token = (await ada(DELETE, input=select))["messageDelete"]["undo"]["token"]
    await fill(ada, 1_500)
    last = len(await told(ada))
    assert (await ada(TAKE_BACK, token=token))["undo"]["errors"][0]["code"] == "QUOTA_EXCEEDED"
    await bounded(ada, quota=11_000)
    assert (await ada(TAKE_BACK, token=token))["undo"]["errors"] == []
    assert (await told(ada))[last:] == [("STORAGE", "CRITICAL", 10_500, 11_000, False)]
    assert await letters(ada.world) == last + 1


@pytest.mark.parametrize("road", ["uploaded", "sent"])
async def test_what_the_account_puts_in_itself_passes_marks_too(ada: Client, road: str) -> None:
    await bounded(ada, quota=QUOTA)
    await fill(ada, 7_000)
    if road == "uploaded":
        raw = weighing(1_500).decode()
        given = {"mailbox": {"path": "INBOX"}, "raw": raw}
        assert (await ada(UPLOAD, input=given))["messageUpload"]["errors"] == []
    else:
        assert await send(ada, "carol@example.net", text="y" * 1_000 + "\n") == []
    ((limit, at, used, _, refused),) = await told(ada)
    assert (limit, at, 8_000 <= used < 9_500, refused) == ("STORAGE", "WARNING", True, False)
    assert await letters(ada.world) == 1


async def test_the_marks_are_settings_that_hold_at_once(ada: Client, root: Client) -> None:
    document = """mutation ($key: String!, $value: JSON) {
      settingSet(input: {key: $key, value: $value}) { errors { code path
        ... on ValidationError { constraint } } } }"""

    async def put(key: str, value: Any) -> Any:
        errors = (await root(document, key=key, value=value))["settingSet"]["errors"]
        return errors[0].get("constraint") if errors else None

    await bounded(ada, quota=QUOTA)
    assert await put("limits.warning", 50) is None
    assert await put("limits.letters", False) is None
    await fill(ada, 5_000)
    assert await told(ada) == [storage("WARNING", 5_000)]
    assert await letters(ada.world) == 0
    assert await put("limits.critical", 0) is None
    await fill(ada, 4_900)
    assert len(await told(ada)) == 1
    for key, value, rule in (
        ("limits.warning", 100, "max"),
        ("limits.critical", -1, "min"),
        ("limits.critical", "high", "type"),
        ("limits.letters", 1, "type"),
        ("limits.letters", "off", "type"),
        ("limits.letters", None, "type"),
    ):
        assert await put(key, value) == rule


# what is turned away


async def test_of_a_flood_into_a_full_mailbox_one_row_tells(
    ada: Client, clock: Clock, statements: list[str]
) -> None:
    await bounded(ada, quota=QUOTA)
    await fill(ada, QUOTA)
    assert await told(ada) == [storage("FULL", QUOTA)]
    asked = len(statements)
    assert await asyncio.gather(*(accepted(ada) for _ in range(8))) == ["OverQuota"] * 8
    assert (await told(ada))[1:] == [storage("FULL", QUOTA, refused=True)]
    assert await letters(ada.world) == 1  # the one that says that it is full
    asked = len(statements)
    for _ in range(5):
        assert await accepted(ada) == "OverQuota"
    assert all(one.startswith("SELECT") for one in statements[asked:])
    assert len(statements) - asked == 5 * 2
    clock.tick(hours=23, minutes=59)
    await accepted(ada)
    assert len(await told(ada)) == 2
    clock.tick(minutes=1)
    await accepted(ada)
    assert (await told(ada))[2:] == [storage("FULL", QUOTA, refused=True)]
    assert await letters(ada.world) == 1


async def test_what_does_not_fit_is_told_once_a_day_and_again_after_a_mark(
    ada: Client, clock: Clock
) -> None:
    await bounded(ada, quota=QUOTA)
    await fill(ada, 5_000)

    async def refused(size: int) -> None:
        with pytest.raises(OverQuota):
            await fill(ada, size)

    for _ in range(3):
        await refused(6_000)
    assert await told(ada) == [storage("NORMAL", 5_000, refused=True)]
    assert await letters(ada.world) == 0  # there is room, only not for that
    await fill(ada, 3_500)
    assert await letters(ada.world) == 1
    await asyncio.gather(refused(2_000), refused(2_000), refused(2_000))
    assert (await told(ada))[1:] == [
        storage("WARNING", 8_500),
        storage("WARNING", 8_500, refused=True),
    ]
    assert await letters(ada.world) == 2
    clock.tick(days=1)
    await refused(2_000)
    assert (await told(ada))[3:] == [storage("WARNING", 8_500, refused=True)]
    assert await letters(ada.world) == 2


@pytest.mark.usefixtures("examined")
async def test_neighbours_and_our_own_queue_are_answered_as_before(
    ada: Client, tmp_path: Path
) -> None:
    world = ada.world
    await bounded(ada, quota=QUOTA)
    await fill(ada, 9_000)
    listener = await lmtp.start_lmtp_listener(
        world, "127.0.0.1", 0, spool_folder=tmp_path / "spool"
    )
    neighbour = await connect(listener.port)
    for n in range(3):
        await neighbour.begin(ada.address)
        neighbour.send(weighing(2_000, f"{n}") + b".\r\n")
        assert (await neighbour.hear()).startswith("452 4.2.2")
    assert (await told(ada))[1:] == [storage("WARNING", 9_000, refused=True)]
    to = JobRecipient(1, ada.address, 1, world.now() + timedelta(days=5))
    sender = "bob@example.org"
    job = DeliveryJob(1, 2, "q", 3, 4, 5, sender, "example.org", world.now(), [to])
    for n in range(2):
        results = await local_delivery.deliver_to_local_recipients(
            world, job, weighing(2_000, f"own {n}")
        )
        assert results[1].reply_code == 452
    assert len(await told(ada)) == 2
    await bounded(ada, received_max=1, quota=1 << 30)
    assert await neighbour.say(f"MAIL FROM:<{sender}>") == "250 2.1.0 For whom"
    for _ in range(2):
        assert (await neighbour.say(f"RCPT TO:<{ada.address}>")).startswith("450 4.2.1")
    assert (await told(ada))[2:] == [("RECEIVED", "FULL", 1, 1, True)]
    await neighbour.close()
    await listener.close(1)


async def test_messages_that_come_are_told_of_at_their_limit_and_beyond(
    ada: Client, clock: Clock
) -> None:
    await bounded(ada, received_max=3)
    for n in range(3):
        assert await told(ada) == []
        await receive(ada, f"{n}")
    hit, beyond = ("RECEIVED", "FULL", 3, 3, False), ("RECEIVED", "FULL", 3, 3, True)
    assert await told(ada) == [hit]
    clock.tick(minutes=59)
    for _ in range(4):
        assert await accepted(ada) == "RateLimited"
    assert await told(ada) == [hit, beyond]
    clock.tick(minutes=1)
    for n in range(3):
        await receive(ada, f"again {n}")
    await accepted(ada)
    assert await told(ada) == [hit, beyond] * 2
    assert await letters(ada.world) == 0


@pytest.mark.parametrize(
    ("numbers", "used"), [((1, 1, 1), 3), ((2, 1), 3), ((3,), 3), ((1, 1), None)]
)
async def test_recipients_are_told_of_by_the_message_that_uses_them_up(
    ada: Client, numbers: Sequence[int], used: int | None
) -> None:
    await bounded(ada, recipients=3)
    for n, many in enumerate(numbers):
        assert await told(ada) == []
        assert await send(ada, *(f"{n}-{nth}@example.net" for nth in range(many))) == []
    assert await told(ada) == ([("RECIPIENTS", "FULL", used, 3, False)] if used else [])


async def test_no_message_goes_beyond_what_is_left(ada: Client) -> None:
    await bounded(ada, recipients=3)
    assert await send(ada, *(f"{n}@example.net" for n in range(4))) == ["RATE_LIMITED"]
    assert await send(ada, "a@example.net", "b@example.net") == []
    assert await send(ada, "c@example.net", "d@example.net") == ["RATE_LIMITED"]
    assert await send(ada, "c@example.net") == []  # what was refused did not count
    assert await send(ada, "d@example.net") == ["RATE_LIMITED"]


@pytest.mark.parametrize("options", [{}, {"idempotencyKey": "once"}])
async def test_messages_that_may_not_be_sent_are_told_of_once(
    ada: Client, clock: Clock, statements: list[str], options: dict[str, Any]
) -> None:
    await bounded(ada, recipients=2)
    assert await send(ada, "a@example.net", "b@example.net") == []
    assert await send(ada, "c@example.net", options={"validateOnly": True}) == ["RATE_LIMITED"]
    await wait_for_background_tasks(ada.world)
    hit = ("RECIPIENTS", "FULL", 2, 2, False)
    assert await told(ada) == [hit]  # a trial leaves nothing
    assert await send(ada, "c@example.net", options=options) == ["RATE_LIMITED"]
    await wait_for_background_tasks(ada.world)
    assert await told(ada) == [hit, ("RECIPIENTS", "FULL", 2, 2, True)]
    for _ in range(3):
        asked = len(statements)
        assert await send(ada, "c@example.net") == ["RATE_LIMITED"]
        await wait_for_background_tasks(ada.world)
        assert all("api_keys" in s or s.startswith("SELECT") for s in statements[asked:])
    assert len(await told(ada)) == 2
    clock.tick(days=1)
    assert await send(ada, "a@example.net", "b@example.net") == []
    await send(ada, "c@example.net")
    await wait_for_background_tasks(ada.world)
    assert len(await told(ada)) == 4


@pytest.mark.usefixtures("examined")
async def test_of_many_messages_at_once_each_refusal_counts_for_one(ada: Client) -> None:
    await bounded(ada, recipients=3)
    answers = await asyncio.gather(*(send(ada, f"{n}@example.net") for n in range(8)))
    await wait_for_background_tasks(ada.world)
    assert sum(errors == [] for errors in answers) == 3
    assert await told(ada) == [
        ("RECIPIENTS", "FULL", 3, 3, False),
        ("RECIPIENTS", "FULL", 3, 3, True),
    ]


# who hears of it, and what is shown


FOLLOW = """subscription { changes(kinds: [LIMIT_REACHED]) { events { kind user { username }
  ... on LimitChange { limit level used allowed refused resetsAt } } } }"""


async def test_followers_of_the_account_hear_of_it_and_nobody_else(
    live: House, ada: Client, bob: Client
) -> None:
    ours, theirs = await live.follow(ada, FOLLOW), await live.follow(bob, FOLLOW)
    await until(lambda: live.seats == 2)
    await bounded(ada, quota=QUOTA, received_max=2)
    await fill(ada, 8_000, 500)
    await fill(bob, 500)
    await until(lambda: len(ours.events) == 2)
    common = {"kind": "LIMIT_REACHED", "user": {"username": "ada"}, "refused": False}
    assert ours.events == [
        {**common, "limit": "STORAGE", "level": "WARNING", "used": 8_000, "allowed": QUOTA,
         "resetsAt": None},
        {**common, "limit": "RECEIVED", "level": "FULL", "used": 2, "allowed": 2,
         "resetsAt": "2030-01-01T01:00:00Z"},
    ]  # fmt: skip
    assert theirs.events == []
    for one in (ours, theirs):
        await one.leave()


LIMITS = """{ users(first: 50) { nodes { username limits { quota { allowed used source level }
  recipients { used source level resetsAt } received { used source level resetsAt } } } } }"""


async def test_limits_say_who_set_them_and_how_far_they_are_used_up(
    root: Client, ada: Client, world: Environment
) -> None:
    async def shown() -> Any:
        (node,) = (await root(LIMITS))["users"]["nodes"]
        return node["limits"]

    found = await shown()
    usual = {"source": "PLATFORM", "level": "NORMAL"}
    assert found["quota"] == {"allowed": 1 << 30, "used": 0, **usual}
    assert found["received"] == {"used": 0, "resetsAt": None, **usual}
    assert found["recipients"] == {"used": 0, "resetsAt": None, **usual}
    async with world.write_session() as session:
        given = {"default_user_quota": QUOTA, "quota_allocated": QUOTA}
        await (await session.connection()).execute(update(Domain).values(**given))
    await fill(ada, 9_500)
    assert (await shown())["quota"] == {
        "allowed": QUOTA, "used": 9_500, "source": "DOMAIN", "level": "CRITICAL"
    }  # fmt: skip
    await bounded(ada, quota=0, recipients=5, received_max=1)
    await send(ada, *(f"{n}@example.net" for n in range(4)))
    found = await shown()
    assert (found["quota"]["source"], found["quota"]["level"]) == ("USER", "NORMAL")
    assert found["recipients"] == {
        "used": 4, "source": "USER", "level": "WARNING", "resetsAt": "2030-01-02T00:00:00Z"
    }  # fmt: skip
    assert found["received"] == {
        "used": 1, "source": "USER", "level": "FULL", "resetsAt": "2030-01-01T01:00:00Z"
    }  # fmt: skip
    await bounded(ada, quota=0)


async def test_limits_of_twenty_cost_the_statements_of_one(
    root: Client, statements: list[str]
) -> None:
    costs = await costs_of_users(root, LIMITS, statements)
    assert len(set(costs)) == 1


async def test_marks_that_are_off_leave_only_what_is_full(ada: Client) -> None:
    options = replace(ada.world.options, limit_warning=0, limit_critical=0)
    ada.world.apply_options(CommittedOptions(options, 10**6))
    await bounded(ada, quota=QUOTA)
    await fill(ada, 9_900)
    with suppress(OverQuota):
        await fill(ada, 500)
    assert await told(ada) == [storage("NORMAL", 9_900, refused=True)]
    assert await letters(ada.world) == 0
