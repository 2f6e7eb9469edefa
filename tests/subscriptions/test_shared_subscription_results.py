"""Tests that subscribers of a shared subscription receive the same as a single subscriber."""

import asyncio
import logging
import random
import secrets
from contextlib import aclosing
from pathlib import Path
from typing import Any

import orjson
import pytest

from graph.http.graphql_request import GraphqlRequest
from graph.schema import schema
from graph.subscriptions import result_stream, shared_subscriptions
from models.runtime.environment import Environment
from resolvers.changes import stream_reader
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes.create import NewMailboxes
from resolvers.messages.bulk import bulk_changes
from resolvers.messages.bulk.bulk_requests import BulkRequest
from resolvers.messages.bulk.flag_changes import FlagChanges
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.messages.filters.message_filter import MessageConditions
from tests.conftest import GraphQLClient, client_context, deliver_to
from tests.support.servers.live_server import (
    ALIASED_SUBSCRIPTION,
    CHANGES_SUBSCRIPTION,
    NESTED_CHANGES_SUBSCRIPTION,
    NEW_ACCOUNT_EVENT_COUNT,
    LiveServer,
    SubscriptionFollower,
    run_live_server,
    stream_cursor,
    wait_until,
)


async def follow_alone(client: GraphQLClient, query: str, events: dict[str, Any]) -> None:
    """Follow without sharing, from the first event."""
    request = GraphqlRequest(query, {"after": stream_cursor(client, 0)})
    async with aclosing(
        result_stream.stream_results(schema, request, client_context(client))
    ) as results:
        async for result in results:
            data = orjson.loads(result.json_text)["data"]
            events.update(
                (event_position(event), event) for event in next(iter(data.values()))["events"]
            )


def event_position(event: Any) -> str:
    return str(event.get("cursor") or event["place"])


def scalar_fields(event: Any) -> Any:
    """Return the scalar fields of an event. Objects can have changed since."""
    return {name: value for name, value in event.items() if not isinstance(value, dict)}


async def test_shared_subscription_delivers_same_events_as_single_one(
    environment: Environment,
    tmp_path: Path,
    ada: GraphQLClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Random changes, with subscribers that join and leave at random times."""
    async with run_live_server(environment, tmp_path) as live:
        await _compare_shared_and_single(live, ada, monkeypatch)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def _compare_shared_and_single(
    live: LiveServer, ada: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    seed = secrets.randbelow(10**6)
    print("seed", seed)  # noqa: T201 - shown if the test fails
    rng = random.Random(seed)  # noqa: S311 - the same choices for the same seed
    # others act while events are delivered
    monkeypatch.setattr(shared_subscriptions, "MEMBERS_PER_STEP", 2)
    queries = {
        "plain": CHANGES_SUBSCRIPTION,
        "nested": NESTED_CHANGES_SUBSCRIPTION,
        "renamed": ALIASED_SUBSCRIPTION,
    }
    followers: list[
        tuple[str, SubscriptionFollower, str]
    ] = []  # the last value is the start cursor
    single_events: dict[str, dict[str, Any]] = {name: {} for name in queries}
    tasks = [
        asyncio.create_task(follow_alone(ada, queries[name], single_events[name]))
        for name in queries
    ]
    await deliver_to(ada, "First")
    last_number = NEW_ACCOUNT_EVENT_COUNT + 1
    for round_number in range(20):
        for _ in range(rng.randrange(3)):
            name = rng.choice(list(queries))
            after = {"after": stream_cursor(ada, rng.randrange(last_number + 1))}
            after = after if rng.random() < 0.5 else {}
            join = live.follow if rng.random() < 0.7 else live.stream
            if len(followers) < 12:
                follower = await join(ada, queries[name], **after)
                followers.append((name, follower, after.get("after", "")))
        if followers and rng.random() < 0.3:
            await followers.pop(rng.randrange(len(followers)))[1].unsubscribe()
        change_count = rng.choice((1, 1, 1, 4))
        await asyncio.gather(
            *(
                _make_random_change(ada, rng, round_number * 10 + index)
                for index in range(change_count)
            )
        )
        last_number = await _last_position(ada)
        last_cursor = stream_cursor(ada, last_number)
        await wait_until(
            lambda: (
                {
                    _last_cursor(follower) or start_cursor
                    for _, follower, start_cursor in followers
                    if start_cursor
                }
                <= {last_cursor}  # noqa: B023
            )
        )
        await wait_until(lambda: all(last_cursor in events for events in single_events.values()))  # noqa: B023
        for name, follower, _ in followers:
            if (
                change_count == 1 and _last_cursor(follower) == last_cursor
            ):  # all events were delivered at the same state
                assert _received_events(follower)[-1] == single_events[name][last_cursor], (
                    seed,
                    name,
                )
    await wait_until(
        lambda: all(
            _last_cursor(follower) == last_cursor
            for _, follower, _ in followers
            if follower.payloads
        )
    )
    for name, follower, start_cursor in followers:
        received, positions = _received_events(follower), list(single_events[name])
        start_number = (
            int(start_cursor.rpartition(".")[2]) if start_cursor else last_number - len(received)
        )
        assert [event_position(event) for event in received] == positions[start_number:], (
            seed,
            name,
        )
        assert [scalar_fields(event) for event in received] == [
            scalar_fields(single_events[name][event_position(event)]) for event in received
        ], (seed, name)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for _, follower, _ in followers:
        await follower.unsubscribe()
    await wait_until(lambda: not live.groups)


def _received_events(follower: SubscriptionFollower) -> list[Any]:
    batches = [next(iter(payload["data"].values())) for payload in follower.payloads]
    return [event for batch in batches for event in batch["events"]]


def _last_cursor(follower: SubscriptionFollower) -> str:
    if not follower.payloads:
        return ""
    batch = next(iter(follower.payloads[-1]["data"].values()))
    return str(batch.get("cursor") or batch["at"])


async def _last_position(client: GraphQLClient) -> int:
    return (await stream_reader.load_last_stream_positions(client_context(client)))[client.user.id]


async def _make_random_change(client: GraphQLClient, rng: random.Random, number: int) -> None:
    kind = rng.randrange(3)
    if kind == 0:
        await mailbox_create.create_mailboxes(
            client_context(client), NewMailboxes([f"Box {number}"])
        )
    elif kind == 1:
        await deliver_to(client, f"Letter {number}")
    else:
        bulk_request = BulkRequest(
            MessageSelector(conditions=MessageConditions()),
            FlagChanges.from_flag_names({"flagged": rng.random() < 0.5}),
        )
        await bulk_changes.apply_or_queue_bulk_request(client_context(client), bulk_request)


async def create_mailbox(client: GraphQLClient, path: str) -> None:
    await mailbox_create.create_mailboxes(client_context(client), NewMailboxes([path]))


async def test_failed_group_is_replaced_and_delivers_each_event_once(
    live_server: LiveServer,
    ada: GraphQLClient,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    followers = [await live_server.follow(ada, CHANGES_SUBSCRIPTION) for _ in range(3)]
    followers += [await live_server.stream(ada, CHANGES_SUBSCRIPTION) for _ in range(3)]
    await wait_until(lambda: live_server.subscriber_count == 6)
    # the group fails when it has passed the result to its first member
    monkeypatch.setattr(shared_subscriptions, "MEMBERS_PER_STEP", 0)
    await create_mailbox(ada, "One")
    await wait_until(lambda: caplog.records)
    monkeypatch.undo()
    for count, path in enumerate(("Two", "Three"), 2):
        await create_mailbox(ada, path)
        await wait_until(lambda: all(len(each.events) == count for each in followers))  # noqa: B023
    await wait_until(lambda: live_server.subscriber_count == 6)
    assert len(live_server.groups) == 1
    for follower in followers:
        cursors = [event["cursor"] for event in follower.events]
        assert cursors == [
            stream_cursor(ada, NEW_ACCOUNT_EVENT_COUNT + number) for number in (1, 2, 3)
        ]
        await follower.unsubscribe()
