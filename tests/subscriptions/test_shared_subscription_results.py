"""What somebody is told who shares a subscription is what one is told alone."""

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
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes.loaders import NewMailboxes
from resolvers.messages.bulk import bulk_changes
from resolvers.messages.bulk.bulk_changes import BulkRequest
from resolvers.messages.bulk.row_changes import FlagChanges
from resolvers.messages.filters.filter_conditions import MessageSelector
from resolvers.messages.filters.message_filter import MessageConditions
from tests.conftest import Client, context, receive
from tests.support.servers.live_server import (
    MADE,
    NESTED,
    PLAIN,
    RENAMED,
    Follower,
    House,
    cursor,
    house,
    until,
)


async def lone(client: Client, query: str, events: dict[str, Any]) -> None:
    """Follow as somebody who shares with nobody, from the first event of all."""
    asked = GraphqlRequest(query, {"after": cursor(client, 0)})
    async with aclosing(result_stream.stream_results(schema, asked, context(client))) as told:
        async for one in told:
            data = orjson.loads(one.json_text)["data"]
            events.update((place(each), each) for each in next(iter(data.values()))["events"])


def place(event: Any) -> str:
    return str(event.get("cursor") or event["place"])


def facts(event: Any) -> Any:
    """What an event says of itself: objects are as they are when it is told."""
    return {name: value for name, value in event.items() if not isinstance(value, dict)}


async def test_what_is_shared_is_what_one_gets_alone(
    world: Environment,
    tmp_path: Path,
    ada: Client,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Random changes, and followers who come and go in many ways."""
    async with house(world, tmp_path) as live:
        await _compare(live, ada, monkeypatch)
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]


async def _compare(live: House, ada: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    seed = secrets.randbelow(10**6)
    print("seed", seed)  # noqa: T201 - shown where it fails
    dice = random.Random(seed)  # noqa: S311 - the same dice for the same seed
    monkeypatch.setattr(
        shared_subscriptions, "MEMBERS_PER_STEP", 2
    )  # others act in the middle of a telling
    queries = {"plain": PLAIN, "nested": NESTED, "renamed": RENAMED}
    followers: list[tuple[str, Follower, str]] = []  # the last says where it began
    alone: dict[str, dict[str, Any]] = {name: {} for name in queries}
    tasks = [asyncio.create_task(lone(ada, queries[name], alone[name])) for name in queries]
    await receive(ada, "First")
    number = MADE + 1
    for turn in range(20):
        for _ in range(dice.randrange(3)):
            name = dice.choice(list(queries))
            after = {"after": cursor(ada, dice.randrange(number + 1))}
            after = after if dice.random() < 0.5 else {}
            join = live.follow if dice.random() < 0.7 else live.stream
            if len(followers) < 12:
                made = await join(ada, queries[name], **after)
                followers.append((name, made, after.get("after", "")))
        if followers and dice.random() < 0.3:
            await followers.pop(dice.randrange(len(followers)))[1].leave()
        many = dice.choice((1, 1, 1, 4))
        await asyncio.gather(*(_change(ada, dice, turn * 10 + n) for n in range(many)))
        number = await _reached(ada)
        there = cursor(ada, number)
        await until(
            lambda: {_at(each) or begin for _, each, begin in followers if begin} <= {there}  # noqa: B023
        )
        await until(lambda: all(there in events for events in alone.values()))  # noqa: B023
        for name, each, _ in followers:
            if many == 1 and _at(each) == there:  # all has been told at the same state
                assert _events(each)[-1] == alone[name][there], (seed, name)
    await until(lambda: all(_at(each) == there for _, each, _ in followers if each.got))
    for name, each, begin in followers:
        got, order = _events(each), list(alone[name])
        first = int(begin.rpartition(".")[2]) if begin else number - len(got)
        assert [place(event) for event in got] == order[first:], (seed, name)
        assert [facts(event) for event in got] == [
            facts(alone[name][place(event)]) for event in got
        ], (seed, name)
    for task in tasks:
        task.cancel()
    await asyncio.wait(tasks)
    for _, each, _ in followers:
        await each.leave()
    await until(lambda: not live.groups)


def _events(each: Follower) -> list[Any]:
    batches = [next(iter(payload["data"].values())) for payload in each.got]
    return [event for batch in batches for event in batch["events"]]


def _at(each: Follower) -> str:
    if not each.got:
        return ""
    batch = next(iter(each.got[-1]["data"].values()))
    return str(batch.get("cursor") or batch["at"])


async def _reached(client: Client) -> int:
    return (await stream_reader.load_current_positions(context(client)))[client.user.id]


async def _change(client: Client, dice: random.Random, number: int) -> None:
    kind = dice.randrange(3)
    if kind == 0:
        await mailbox_loaders.create_mailboxes(context(client), NewMailboxes([f"Box {number}"]))
    elif kind == 1:
        await receive(client, f"Letter {number}")
    else:
        order = BulkRequest(
            MessageSelector(conditions=MessageConditions()),
            FlagChanges.from_flag_names({"flagged": dice.random() < 0.5}),
        )
        await bulk_changes.apply_bulk_request(context(client), order)
