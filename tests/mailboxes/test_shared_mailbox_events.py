"""Test the events of shared mailboxes that grantees get, and those that they do not get."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from graph.types.scalars import SCALARS, Cursor
from models.events.event_types import EventType
from models.events.journal import MAX_IDS_PER_ROW, JournalEvent, StreamPositions
from models.events.wakeups import FollowerWakeup
from resolvers.changes import stream_reader
from resolvers.changes.stream_reader import EventBatch, FollowRequest, ResyncReason
from tests.conftest import GraphQLClient, client_context, deliver_to, make_client
from tests.support.accounts.shared_mailboxes import (
    READ_RIGHTS,
    create_team_mailbox,
    list_message_ids,
    run_mailbox_mutation,
    share_mailbox,
)
from tests.support.clients.change_followers import wait_for_followers
from tests.support.operations.mailbox_operations import append_unread_messages, create_mailboxes
from tests.support.operations.message_sources import create_draft
from tests.support.servers.live_server import (
    NESTED_CHANGES_SUBSCRIPTION,
    record_journal_entry,
    run_live_server,
    wait_until,
)
from tests.support.time_limits import HANG_SECONDS

NO_INTERVAL = timedelta(0)
LOCATION_FACTS = ("mailbox", "uid", "fromMailbox", "fromUid")


class ChangeFollower:
    """Follows the changes that a client sees through the resolver, batch by batch."""

    def __init__(
        self, client: GraphQLClient, since: StreamPositions | None = None, **options: Any
    ) -> None:
        self.ctx = client_context(client)
        self.other_wakeups = self.ctx.environment.wakeups.follower_wakeups
        self.stream = stream_reader.follow_changes(
            self.ctx, FollowRequest(since, min_interval=NO_INTERVAL, **options)
        )
        self.pending: asyncio.Future[EventBatch] | None = None

    @property
    def own_wakeups(self) -> set[FollowerWakeup]:
        """The wake-up of this follower, as soon as it follows its streams."""
        return self.ctx.environment.wakeups.follower_wakeups - self.other_wakeups

    async def start(self) -> "ChangeFollower":
        """Start to follow, before a test makes changes."""
        self.pending = asyncio.ensure_future(anext(self.stream))
        await wait_until(lambda: self.own_wakeups)
        (wakeup,) = self.own_wakeups
        async with asyncio.timeout(HANG_SECONDS):
            await wakeup.started.wait()
        return self

    async def next_batch(self) -> EventBatch:
        async with asyncio.timeout(HANG_SECONDS):
            pending, self.pending = self.pending, None
            return await (pending or anext(self.stream))

    async def events(self, count: int) -> list[JournalEvent]:
        received: list[JournalEvent] = []
        while len(received) < count:
            received += (await self.next_batch()).events
        return received

    async def is_silent(self) -> bool:
        """Return true if no event arrives until the follower has read all changes so far."""
        pending = self.pending = self.pending or asyncio.ensure_future(anext(self.stream))
        await wait_until(
            lambda: pending.done() or any(wakeup.is_idle for wakeup in self.own_wakeups)
        )
        return not pending.done()


def kinds_and_locations(events: Sequence[JournalEvent]) -> list[tuple[EventType, set[str]]]:
    return [(event.type, set(LOCATION_FACTS) & event.facts.keys()) for event in events]


async def current_positions(client: GraphQLClient) -> StreamPositions:
    return await stream_reader.load_last_stream_positions(client_context(client))


async def run_mutation(client: GraphQLClient, name: str, **arguments: Any) -> None:
    assert (await run_mailbox_mutation(client, name, "journalCursor", **arguments))["errors"] == []


async def test_grantee_gets_events_of_shared_mailbox_only(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await create_team_mailbox(ada, "Old")
    await share_mailbox(ada, bob, *READ_RIGHTS)
    follower = await ChangeFollower(bob).start()
    await deliver_to(ada, "Private")
    await create_mailboxes(ada, "Private")
    await append_unread_messages(ada, "Private", "Private too")
    assert await follower.is_silent()
    await append_unread_messages(ada, "Team", "New")
    (event,) = await follower.events(1)
    assert event.type is EventType.MESSAGE_ADDED
    assert event.facts["mailbox"] == (await ada.load_mailbox("Team")).id
    assert event.origin is None
    await deliver_to(bob, "Own")
    (event,) = await follower.events(1)
    assert event.stream_id == bob.user.id


async def test_share_and_its_end_send_events(ada: GraphQLClient, bob: GraphQLClient) -> None:
    await create_team_mailbox(ada, "Old")
    follower = await ChangeFollower(bob).start()
    await share_mailbox(ada, bob, *READ_RIGHTS)
    (event,) = await follower.events(1)
    assert (event.type, event.stream_id) == (EventType.MAILBOX_CREATED, bob.user.id)
    await append_unread_messages(ada, "Team", "New")
    assert kinds_and_locations(await follower.events(1)) == [
        (EventType.MESSAGE_ADDED, {"mailbox", "uid"})
    ]
    await share_mailbox(ada, bob)
    assert kinds_and_locations(await follower.events(1)) == [(EventType.MAILBOX_DELETED, set())]
    await append_unread_messages(ada, "Team", "Unheard")
    assert await follower.is_silent()
    await share_mailbox(ada, bob, *READ_RIGHTS)
    assert kinds_and_locations(await follower.events(1)) == [(EventType.MAILBOX_CREATED, set())]
    await append_unread_messages(ada, "Team", "Heard")
    (event,) = await follower.events(1)
    assert event.type is EventType.MESSAGE_ADDED
    assert event.facts["uid"] == 4


async def test_rights_are_checked_when_batch_is_built(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await create_team_mailbox(ada, "Old")
    await share_mailbox(ada, bob, *READ_RIGHTS)
    since = await current_positions(bob)
    await append_unread_messages(ada, "Team", "New")
    await share_mailbox(ada, bob, "LOOKUP")
    events = await ChangeFollower(bob, since).events(1)
    assert {event.type for event in events} == {EventType.MAILBOX_UPDATED}
    since = await current_positions(bob)
    await append_unread_messages(ada, "Team", "Newer")
    await share_mailbox(ada, bob, *READ_RIGHTS)
    await append_unread_messages(ada, "Team", "Newest")
    events = await ChangeFollower(bob, since).events(2)
    (event,) = (event for event in events if event.type is EventType.MESSAGE_ADDED)
    assert event.facts["uid"] == 4  # not the message that arrived while bob could not read


async def test_cursor_before_share_gets_all_later_events(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    since = await current_positions(bob)
    await create_team_mailbox(ada, "Before")
    await share_mailbox(ada, bob, *READ_RIGHTS)
    await append_unread_messages(ada, "Team", "After")
    follower = ChangeFollower(bob, since)
    kinds = {event.type for event in await follower.events(2)}
    assert kinds == {EventType.MAILBOX_CREATED, EventType.MESSAGE_ADDED}
    assert await follower.is_silent()


async def test_moves_out_of_and_into_share_are_delete_and_add_events(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await create_team_mailbox(ada, "One", "Two")
    await create_mailboxes(ada, "Other")
    await share_mailbox(ada, bob, *READ_RIGHTS)
    follower = await ChangeFollower(bob).start()
    message_id = (await list_message_ids(ada, "Team"))[0]
    select = {"ids": [message_id]}
    await run_mutation(ada, "messageMove", select=select, to={"path": "Other"})
    deleted = await follower.events(1)
    assert kinds_and_locations(deleted) == [(EventType.MESSAGE_PURGED, {"mailbox", "uid"})]
    assert deleted[0].facts["mailbox"] == (await ada.load_mailbox("Team")).id
    await run_mutation(ada, "messageUpdate", select=select, set={"flagged": True})
    await run_mutation(ada, "messageMove", select=select, to={"path": "Team"})
    added = await follower.events(1)
    assert kinds_and_locations(added) == [(EventType.MESSAGE_ADDED, {"mailbox", "uid"})]
    assert added[0].facts["uid"] == 3
    await share_mailbox(ada, bob, *READ_RIGHTS, path="Other")
    assert kinds_and_locations(await follower.events(1)) == [(EventType.MAILBOX_CREATED, set())]
    await run_mutation(ada, "messageMove", select=select, to={"path": "Other"})
    assert kinds_and_locations(await follower.events(1)) == [
        (EventType.MESSAGE_MOVED, set(LOCATION_FACTS))
    ]
    await run_mutation(ada, "messageDelete", select=select)
    assert kinds_and_locations(await follower.events(1)) == [
        (EventType.MESSAGE_DELETED, {"mailbox", "uid"})
    ]
    await run_mutation(ada, "mailboxDelete", mailboxes=[{"path": "Other"}])
    (event,) = await follower.events(1)
    assert (event.type, event.stream_id) == (EventType.MAILBOX_DELETED, bob.user.id)


async def test_draft_that_is_sent_enters_or_leaves_share(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    draft = await create_draft(ada, to=[{"address": "carol@example.net"}])
    await share_mailbox(ada, bob, *READ_RIGHTS, path="Drafts")
    since = await current_positions(bob)
    follower = await ChangeFollower(bob).start()
    sending = {"message": {"id": draft["id"]}, "undoWindow": "PT10S"}
    answer = await run_mailbox_mutation(ada, "draftSend", "undo { token }", **sending)
    assert answer["errors"] == []
    (left,) = await follower.events(1)
    assert kinds_and_locations([left]) == [(EventType.MESSAGE_PURGED, {"mailbox", "uid"})]
    assert (left.facts["mailbox"], left.facts["uid"]) == ((await ada.load_mailbox("Drafts")).id, 1)
    await run_mutation(ada, "undo", token=answer["undo"]["token"])
    (entered,) = await follower.events(1)
    assert kinds_and_locations([entered]) == [(EventType.MESSAGE_ADDED, {"mailbox", "uid"})]
    assert (entered.facts["uid"], entered.facts["flags"]) == (2, ["\\Seen", "\\Draft"])
    await run_mutation(ada, "draftSave", draft={"id": draft["id"]}, set={"subject": "New"})
    (replaced,) = await follower.events(1)
    assert replaced.type is EventType.MESSAGE_UPDATED
    for kind, event in ((EventType.MESSAGE_PURGED, left), (EventType.MESSAGE_ADDED, entered)):
        (missed,) = await ChangeFollower(bob, since, types={kind}).events(1)
        assert missed.positions[ada.user.id] == event.positions[ada.user.id]


async def test_draft_moves_are_found_behind_many_other_changes(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    draft = await create_draft(ada, to=[{"address": "carol@example.net"}])
    await share_mailbox(ada, bob, *READ_RIGHTS, path="Drafts")
    since = await current_positions(bob)
    await run_mutation(ada, "draftSend", message={"id": draft["id"]})
    max_lag = ada.environment.options.subscriptions_max_lag_events
    for _ in range(max_lag // MAX_IDS_PER_ROW + 1):
        await record_journal_entry(ada, EventType.TASK_UPDATED, [1] * MAX_IDS_PER_ROW)
    follower = ChangeFollower(bob, since, types={EventType.MESSAGE_PURGED})
    assert (await follower.next_batch()).resync_reason is ResyncReason.OVERFLOW


async def test_lookup_right_gets_mailbox_events_only(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await create_team_mailbox(ada)
    await share_mailbox(ada, bob, "LOOKUP")
    follower = await ChangeFollower(bob).start()
    await append_unread_messages(ada, "Team", "New")
    assert await follower.is_silent()
    await run_mutation(ada, "mailboxRename", mailbox={"path": "Team"}, newPath="Crew")
    (event,) = await follower.events(1)
    assert (event.type, event.facts["path"]) == (EventType.MAILBOX_RENAMED, "Crew")


async def test_kind_and_mailbox_filters_apply_to_events_of_share(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await create_team_mailbox(ada, "One")
    await create_mailboxes(ada, "Other")
    await share_mailbox(ada, bob, *READ_RIGHTS)
    mailbox_id = (await ada.load_mailbox("Team")).id
    since = await current_positions(bob)
    await run_mutation(
        ada, "messageMove", select={"mailbox": {"path": "Team"}}, to={"path": "Other"}
    )
    filters = {"types": {EventType.MESSAGE_PURGED}, "mailbox_ids": {mailbox_id}}
    assert kinds_and_locations(await ChangeFollower(bob, since, **filters).events(1)) == [
        (EventType.MESSAGE_PURGED, {"mailbox", "uid"})
    ]
    other_mailbox_ids = {(await ada.load_mailbox("Other")).id}
    assert await ChangeFollower(bob, since, mailbox_ids=other_mailbox_ids).is_silent()


async def test_cursor_with_revoked_stream_stays_valid(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await create_team_mailbox(ada)
    await share_mailbox(ada, bob, *READ_RIGHTS)
    since = await current_positions(bob)
    assert since.keys() == {ada.user.id, bob.user.id}
    await share_mailbox(ada, bob)
    batch = await ChangeFollower(bob, since).next_batch()
    assert batch.position.keys() == {bob.user.id}
    assert batch.resync_reason is None
    future_cursor = {**since, ada.user.id: since[ada.user.id] + 99}
    await share_mailbox(ada, bob, *READ_RIGHTS)
    assert (
        await ChangeFollower(bob, future_cursor).next_batch()
    ).resync_reason is ResyncReason.CURSOR_UNKNOWN


async def test_cursor_includes_streams_of_shared_owners(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    mailbox_id = await create_team_mailbox(ada, "One")
    await share_mailbox(ada, bob, "READ", "SEEN")
    parse_cursor: Any = SCALARS[Cursor].parse_value
    cursor = (await bob("{ viewer { user { cursor } } }"))["viewer"]["user"]["cursor"]
    assert parse_cursor(cursor) == await current_positions(bob)
    since = await current_positions(bob)
    answer = await run_mailbox_mutation(
        bob,
        "messageUpdate",
        "journalCursor",
        select={"mailbox": {"id": mailbox_id}},
        set={"seen": True},
    )
    position = parse_cursor(answer["journalCursor"])
    assert position == {**since, ada.user.id: since[ada.user.id] + 1}
    assert await ChangeFollower(bob, position).is_silent()
    stranger_query = (await make_client(ada.environment, ada.http, "eve"))(
        "{ viewer { user { cursor } } }"
    )
    assert len(parse_cursor((await stranger_query)["viewer"]["user"]["cursor"])) == 1


@pytest.mark.parametrize("transport", ["follow", "stream"])
async def test_live_subscriptions_get_events_of_shared_mailbox(
    ada: GraphQLClient, bob: GraphQLClient, tmp_path: Path, transport: str
) -> None:
    await create_team_mailbox(ada, "Old")
    eve = await make_client(ada.environment, ada.http, "eve")
    async with run_live_server(ada.environment, tmp_path) as server:
        subscriptions = [
            await getattr(server, transport)(client, NESTED_CHANGES_SUBSCRIPTION)
            for client in (bob, bob, eve)
        ]
        await wait_until(lambda: server.subscriber_count == 3)
        await wait_for_followers(ada.environment, 2)  # bob's subscriptions share one
        await share_mailbox(ada, bob, *READ_RIGHTS)
        for subscription in subscriptions[:2]:
            await wait_until(lambda subscription=subscription: len(subscription.events) == 1)
            (event,) = subscription.events
            assert (event["type"], event["mailbox"]["path"]) == ("MAILBOX_CREATED", "Team")
        await deliver_to(ada, "Private")
        await append_unread_messages(ada, "Team", "New")
        for subscription in subscriptions[:2]:
            await wait_until(lambda subscription=subscription: len(subscription.events) == 2)
            event = subscription.events[1]
            assert (event["type"], event["user"]) == ("MESSAGE_ADDED", None)
            assert event["message"]["subject"] == "New"
            assert event["message"]["mailbox"] == {"path": "Team"}
        await share_mailbox(ada, bob)
        await append_unread_messages(ada, "Team", "Unheard")
        await deliver_to(bob, "Own")
        for subscription in subscriptions[:2]:
            await wait_until(lambda subscription=subscription: len(subscription.events) == 4)
            assert [event["type"] for event in subscription.events[2:]] == [
                "MAILBOX_DELETED",
                "MESSAGE_RECEIVED",
            ]
        assert subscriptions[2].events == []
        for subscription in subscriptions:
            await subscription.unsubscribe()
