"""Tests of the benchmark of live updates: its goals, and the data it measures on."""

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
    SUBSCRIBERS_PREFIX,
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
from models.events.event_types import EventType
from models.events.journal import Change
from models.runtime.environment import Environment
from models.store.columns import select_columns
from tests.conftest import GraphQLClient, make_api_key

LIMITS = {  # for each goal the last value that meets it and the first one that does not
    f"500 {SUBSCRIBERS_PREFIX}{DELIVERY_TO_EVENT}, p50": (2.0, 2.01),
    f"500 {SUBSCRIBERS_PREFIX}{DELIVERY_TO_EVENT}, p99": (10.0, 10.1),
    f"500 {SUBSCRIBERS_PREFIX}{CHANGE_TO_EVENT}, p50": (5.0, 5.1),
    f"500 {SUBSCRIBERS_PREFIX}{CHANGE_TO_EVENT}, p99": (25.0, 25.1),
    f"500 {SUBSCRIBERS_PREFIX}{CHANGE_RATE}, 200 requested": (196.0, 195.0),
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
def test_each_goal_is_met_up_to_its_limit(name: str) -> None:
    for value, is_met in zip(LIMITS[name], (True, False), strict=True):
        (goal,) = evaluate_goals([], [MeasuredValue(name, value, "")])
        assert goal.is_met is is_met


async def test_inserted_changes_read_like_recorded_changes(
    environment: Environment, http: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(change_catch_up, "ROWS_PER_TRANSACTION", 8)
    user = await create_user(environment, READER_ADDRESS)
    ada = GraphQLClient(
        http, environment, user, await make_api_key(environment, "ada", user_id=user.id)
    )
    steps = list[int]()
    last_modseq = await change_catch_up.insert_changes(environment, user.id, 20, steps.append)
    assert steps == [8, 8, 4]

    page = (await ada(CHANGES_QUERY, after=f"1.{user.id}.0"))["changes"]
    assert page["hasMore"] is False
    assert page["cursor"] == f"1.{user.id}.{last_modseq}"
    assert len(page["events"]) == last_modseq
    recorded, inserted = page["events"][-22:-20], page["events"][-20:]
    kinds = [str(kind) for kind in change_catch_up.MODEL_TYPES]
    assert [event["type"] for event in recorded] == kinds
    assert [event["type"] for event in inserted] == kinds * 10
    assert [int(event["modseq"]) for event in inserted] == [
        *range(last_modseq - 19, last_modseq + 1)
    ]
    for event, pattern in zip(inserted, recorded * 10, strict=True):
        expected_fields = {"mailboxId": pattern["mailboxId"], "flags": pattern["flags"]}
        assert expected_fields.items() <= event.items()
    message_uids = [(event["messageId"], event["uid"]) for event in inserted]
    assert message_uids[::2] == message_uids[1::2]
    assert len(set(message_uids)) == 10

    changes = select(*select_columns(Change)).where(col(Change.stream_id) == user.id)
    rows = list(await environment.database.read(changes.order_by(col(Change.last))))
    for row, pattern in zip(rows[-20:], rows[-22:-20] * 10, strict=True):
        assert list(row.facts) == list(pattern.facts)
        assert row.facts["modseq"] == row.last


async def test_without_journal_omits_only_journal_entries(environment: Environment) -> None:
    user = await create_user(environment, READER_ADDRESS)
    recipient = await address_resolution.load_recipient_below_limits(environment, READER_ADDRESS)

    async def deliver_and_list_changes(number: int) -> list[int]:
        message = await received_messages.parse_storable_message(
            MessageGenerator().make_message(number)
        )
        await received_messages.store_once_for_recipient(
            environment, message, recipient, "bob@example.com"
        )
        conditions = (
            col(Change.stream_id) == user.id,
            col(Change.type) == EventType.MESSAGE_RECEIVED,
        )
        return [
            row.last
            for row in await environment.database.read(select(col(Change.last)).where(*conditions))
        ]

    (first,) = await deliver_and_list_changes(0)
    with journal_cost.without_journal(is_enabled=False):
        assert await deliver_and_list_changes(1) == [first]
    with journal_cost.without_journal(is_enabled=True):
        assert await deliver_and_list_changes(2) == [first, first + 1]


def test_partial_response_is_complete_after_last_byte() -> None:
    body = orjson.dumps({"data": {"n": 1}})
    raw = b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(body), body)
    response = PartialResponse()
    for _ in range(2):
        assert [response.add_data(raw[offset : offset + 1]) for offset in range(len(raw))] == [
            False
        ] * (len(raw) - 1) + [True]
        assert response.is_success
        assert response.json_body == {"data": {"n": 1}}
        response.clear()
    assert response.add_data(raw.replace(b'"data":{', b'"errors":[{').replace(b"}}", b"}]"))
    assert not response.is_success
