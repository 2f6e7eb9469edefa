"""The benchmark of live updates: what it holds against its figures, and what it measures on."""

import httpx
import orjson
import pytest
from sqlmodel import col, select

from bench.figures.goals import (
    CHANGE_RATE,
    CHANGE_TO_EVENT,
    DELIVERY_TO_EVENT,
    EMPTY_RUN,
    FETCH_MEMORY,
    FETCHED_MESSAGES,
    IDLE_SUBSCRIBER_MEMORY,
    JOURNAL_SHARE,
    REPLAY_RATE,
    evaluate_goals,
)
from bench.figures.measurements import MeasuredValue
from bench.load.http_client import PartialResponse
from bench.load.message_generator import MessageGenerator
from bench.load.sample_account import READER_ADDRESS, create_user
from bench.scenarios import change_catch_up, journal_cost
from bench.scenarios.live_subscriptions import CHANGES_QUERY
from mail.recipients import address_resolution
from mail.storage import received_messages
from models.events.journal import Change, ChangeKind
from models.runtime.environment import Environment
from models.store.columns import select_columns
from tests.conftest import Client, make_key

LIMITS = {  # the last value that holds, and the first one that does not
    f"500 watchers: {DELIVERY_TO_EVENT}, p50": (2.0, 2.01),
    f"500 watchers: {DELIVERY_TO_EVENT}, p99": (10.0, 10.1),
    f"500 watchers: {CHANGE_TO_EVENT}, p50": (5.0, 5.1),
    f"500 watchers: {CHANGE_TO_EVENT}, p99": (25.0, 25.1),
    f"500 watchers: {CHANGE_RATE}, 200 asked": (196.0, 195.0),
    f"5,000 {IDLE_SUBSCRIBER_MEMORY}": (350.0, 351.0),
    f"1,000 {IDLE_SUBSCRIBER_MEMORY}": (70.0, 71.0),
    f"1,000,009 {REPLAY_RATE}": (20_000.0, 19_999.0),
    FETCHED_MESSAGES.format(10_000): (60.0, 60.1),
    FETCHED_MESSAGES.format(1000): (6.0, 6.01),
    FETCH_MEMORY: (150.0, 151.0),
    EMPTY_RUN: (1.0, 1.01),
    f"{JOURNAL_SHARE}, CPU": (10.0, 10.1),
    f"{JOURNAL_SHARE}, time": (10.0, 10.1),
}


@pytest.mark.parametrize("name", LIMITS)
def test_each_goal_holds_up_to_its_figure(name: str) -> None:
    for value, holds in zip(LIMITS[name], (True, False), strict=True):
        (goal,) = evaluate_goals([], [MeasuredValue(name, value, "")])
        assert goal.holds is holds


async def test_a_journal_that_was_filled_reads_as_one_that_was_written(
    world: Environment, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_catch_up, "ROWS_PER_TRANSACTION", 8)
    user = await create_user(world, READER_ADDRESS)
    ada = Client(http, world, user, await make_key(world, "ada", user_id=user.id))
    steps = list[int]()
    last = await change_catch_up.insert_changes(world, user.id, 20, steps.append)
    assert steps == [8, 8, 4]

    page = (await ada(CHANGES_QUERY, after=f"1.{user.id}.0"))["changes"]
    assert page["hasMore"] is False
    assert page["cursor"] == f"1.{user.id}.{last}"
    assert len(page["events"]) == last
    written, filled = page["events"][-22:-20], page["events"][-20:]
    kinds = [str(kind) for kind in change_catch_up.MODEL_KINDS]
    assert [event["kind"] for event in written] == kinds
    assert [event["kind"] for event in filled] == kinds * 10
    assert [int(event["modseq"]) for event in filled] == [*range(last - 19, last + 1)]
    for event, like in zip(filled, written * 10, strict=True):
        told = {"mailboxId": like["mailboxId"], "flags": like["flags"]}
        assert told.items() <= event.items()
    named = [(event["messageId"], event["uid"]) for event in filled]
    assert named[::2] == named[1::2]
    assert len(set(named)) == 10

    changes = select(*select_columns(Change)).where(col(Change.stream_id) == user.id)
    rows = list(await world.database.read(changes.order_by(col(Change.last))))
    for row, like in zip(rows[-20:], rows[-22:-20] * 10, strict=True):
        assert list(row.facts) == list(like.facts)
        assert row.facts["modseq"] == row.last


async def test_what_is_left_out_of_a_delivery_is_the_journal_alone(world: Environment) -> None:
    user = await create_user(world, READER_ADDRESS)
    to = await address_resolution.load_recipient(world, READER_ADDRESS)

    async def delivered(number: int) -> list[int]:
        letter = await received_messages.read_message(MessageGenerator().make_message(number))
        await received_messages.store_for_recipient(world, letter, to, "bob@example.com")
        mine = col(Change.stream_id) == user.id, col(Change.kind) == ChangeKind.MESSAGE_ADDED
        return [
            row.last for row in await world.database.read(select(col(Change.last)).where(*mine))
        ]

    (first,) = await delivered(0)
    with journal_cost.without_journal(is_enabled=False):
        assert await delivered(1) == [first]
    with journal_cost.without_journal(is_enabled=True):
        assert await delivered(2) == [first, first + 1]


def test_an_answer_is_whole_once_its_last_byte_came() -> None:
    body = orjson.dumps({"data": {"n": 1}})
    raw = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    answer = PartialResponse()
    for _ in range(2):
        assert [answer.add_data(raw[n : n + 1]) for n in range(len(raw))] == [False] * (
            len(raw) - 1
        ) + [True]
        assert answer.is_success
        assert answer.json_body == {"data": {"n": 1}}
        answer.clear()
    assert answer.add_data(raw.replace(b'"data":{', b'"errors":[{').replace(b"}}", b"}]"))
    assert not answer.is_success
