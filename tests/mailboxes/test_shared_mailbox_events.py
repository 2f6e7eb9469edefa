"""What a grantee hears of shared folders, and what nobody hears."""

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from graph.types.scalars import SCALARS, Cursor
from models.events.journal import ChangeKind, JournalEvent, StreamPositions
from resolvers.changes import stream_reader
from resolvers.changes.stream_reader import EventBatch, FollowRequest, ResyncReason
from tests.conftest import Client, context, make_client, receive
from tests.support.accounts.shared_mailboxes import READ, keys, mutate, share, team
from tests.support.operations.mailbox_operations import append_unread_messages, create_mailboxes
from tests.support.servers.live_server import NESTED, house, until

FAST = timedelta(0)
PLACES = ("mailbox", "uid", "fromMailbox", "fromUid")


class Follower:
    """One who follows by the resolver, batch by batch."""

    def __init__(self, client: Client, since: StreamPositions | None = None, **asked: Any) -> None:
        self.ctx = context(client)
        self.stream = stream_reader.follow_changes(
            self.ctx, FollowRequest(since, min_interval=FAST, **asked)
        )
        self.coming: asyncio.Future[EventBatch] | None = None

    async def begin(self) -> "Follower":
        """Listen before anything is done."""
        self.coming = asyncio.ensure_future(anext(self.stream))
        await asyncio.sleep(0.05)
        return self

    async def batch(self) -> EventBatch:
        async with asyncio.timeout(5):
            coming, self.coming = self.coming, None
            return await (coming or anext(self.stream))

    async def events(self, many: int) -> list[JournalEvent]:
        found: list[JournalEvent] = []
        while len(found) < many:
            found += (await self.batch()).events
        return found

    async def silent(self) -> bool:
        """Whether nothing comes."""
        coming = self.coming = self.coming or asyncio.ensure_future(anext(self.stream))
        await asyncio.wait([coming], timeout=0.2)
        return not coming.done()


def told(events: Sequence[JournalEvent]) -> list[tuple[ChangeKind, set[str]]]:
    return [(event.kind, set(PLACES) & event.facts.keys()) for event in events]


async def here(client: Client) -> StreamPositions:
    return await stream_reader.load_current_positions(context(client))


async def act(client: Client, name: str, **given: Any) -> None:
    assert (await mutate(client, name, "journalCursor", **given))["errors"] == []


async def test_a_grantee_hears_the_folder_and_nothing_else(ada: Client, bob: Client) -> None:
    await team(ada, "Old")
    await share(ada, bob, *READ)
    follower = await Follower(bob).begin()
    await receive(ada, "Private")
    await create_mailboxes(ada, "Private")
    await append_unread_messages(ada, "Private", "Private too")
    assert await follower.silent()
    await append_unread_messages(ada, "Team", "New")
    (event,) = await follower.events(1)
    assert event.kind is ChangeKind.MESSAGE_ADDED
    assert event.facts["mailbox"] == (await ada.box("Team")).id
    assert event.origin is None
    await receive(bob, "Own")
    (event,) = await follower.events(1)
    assert event.stream_id == bob.user.id


async def test_a_share_is_heard_at_once_and_so_is_its_end(ada: Client, bob: Client) -> None:
    await team(ada, "Old")
    follower = await Follower(bob).begin()
    await share(ada, bob, *READ)
    (event,) = await follower.events(1)
    assert (event.kind, event.stream_id) == (ChangeKind.MAILBOX_CREATED, bob.user.id)
    await append_unread_messages(ada, "Team", "New")
    assert told(await follower.events(1)) == [(ChangeKind.MESSAGE_ADDED, {"mailbox", "uid"})]
    await share(ada, bob)
    assert told(await follower.events(1)) == [(ChangeKind.MAILBOX_DELETED, set())]
    await append_unread_messages(ada, "Team", "Unheard")
    assert await follower.silent()
    await share(ada, bob, *READ)
    assert told(await follower.events(1)) == [(ChangeKind.MAILBOX_CREATED, set())]
    await append_unread_messages(ada, "Team", "Heard")
    (event,) = await follower.events(1)
    assert event.kind is ChangeKind.MESSAGE_ADDED
    assert event.facts["uid"] == 4


async def test_rights_are_judged_when_a_batch_is_made(ada: Client, bob: Client) -> None:
    await team(ada, "Old")
    await share(ada, bob, *READ)
    since = await here(bob)
    await append_unread_messages(ada, "Team", "New")
    await share(ada, bob, "LOOKUP")
    events = await Follower(bob, since).events(1)
    assert {event.kind for event in events} == {ChangeKind.MAILBOX_UPDATED}
    since = await here(bob)
    await append_unread_messages(ada, "Team", "Newer")
    await share(ada, bob, *READ)
    await append_unread_messages(ada, "Team", "Newest")
    events = await Follower(bob, since).events(2)
    (event,) = (event for event in events if event.kind is ChangeKind.MESSAGE_ADDED)
    assert event.facts["uid"] == 4  # not what came before it was theirs to read


async def test_nothing_is_lost_between_a_share_and_the_next_visit(ada: Client, bob: Client) -> None:
    since = await here(bob)
    await team(ada, "Before")
    await share(ada, bob, *READ)
    await append_unread_messages(ada, "Team", "After")
    follower = Follower(bob, since)
    kinds = {event.kind for event in await follower.events(2)}
    assert kinds == {ChangeKind.MAILBOX_CREATED, ChangeKind.MESSAGE_ADDED}
    assert await follower.silent()


async def test_what_leaves_is_gone_and_what_comes_is_new(ada: Client, bob: Client) -> None:
    await team(ada, "One", "Two")
    await create_mailboxes(ada, "Other")
    await share(ada, bob, *READ)
    follower = await Follower(bob).begin()
    key = (await keys(ada, "Team"))[0]
    select = {"ids": [key]}
    await act(ada, "messageMove", select=select, to={"path": "Other"})
    gone = await follower.events(1)
    assert told(gone) == [(ChangeKind.MESSAGE_DELETED, {"mailbox", "uid"})]
    assert gone[0].facts["mailbox"] == (await ada.box("Team")).id
    await act(ada, "messageUpdate", select=select, set={"flagged": True})
    await act(ada, "messageMove", select=select, to={"path": "Team"})
    come = await follower.events(1)
    assert told(come) == [(ChangeKind.MESSAGE_ADDED, {"mailbox", "uid"})]
    assert come[0].facts["uid"] == 3
    await share(ada, bob, *READ, path="Other")
    assert told(await follower.events(1)) == [(ChangeKind.MAILBOX_CREATED, set())]
    await act(ada, "messageMove", select=select, to={"path": "Other"})
    assert told(await follower.events(1)) == [(ChangeKind.MESSAGE_MOVED, set(PLACES))]
    await act(ada, "messageDelete", select=select)
    assert told(await follower.events(1)) == [(ChangeKind.MESSAGE_ARCHIVED, {"mailbox", "uid"})]
    await act(ada, "mailboxDelete", mailboxes=[{"path": "Other"}])
    (event,) = await follower.events(1)
    assert (event.kind, event.stream_id) == (ChangeKind.MAILBOX_DELETED, bob.user.id)


async def test_one_who_looks_up_hears_of_folders_alone(ada: Client, bob: Client) -> None:
    await team(ada)
    await share(ada, bob, "LOOKUP")
    follower = await Follower(bob).begin()
    await append_unread_messages(ada, "Team", "New")
    assert await follower.silent()
    await act(ada, "mailboxRename", mailbox={"path": "Team"}, newPath="Crew")
    (event,) = await follower.events(1)
    assert (event.kind, event.facts["path"]) == (ChangeKind.MAILBOX_RENAMED, "Crew")


async def test_kinds_and_folders_are_those_that_are_told(ada: Client, bob: Client) -> None:
    await team(ada, "One")
    await create_mailboxes(ada, "Other")
    await share(ada, bob, *READ)
    box = (await ada.box("Team")).id
    since = await here(bob)
    await act(ada, "messageMove", select={"mailbox": {"path": "Team"}}, to={"path": "Other"})
    only = {"kinds": {ChangeKind.MESSAGE_DELETED}, "mailbox_ids": {box}}
    assert told(await Follower(bob, since, **only).events(1)) == [
        (ChangeKind.MESSAGE_DELETED, {"mailbox", "uid"})
    ]
    other = {(await ada.box("Other")).id}
    assert await Follower(bob, since, mailbox_ids=other).silent()


async def test_a_cursor_of_revoked_streams_goes_on(ada: Client, bob: Client) -> None:
    await team(ada)
    await share(ada, bob, *READ)
    since = await here(bob)
    assert since.keys() == {ada.user.id, bob.user.id}
    await share(ada, bob)
    batch = await Follower(bob, since).batch()
    assert batch.position.keys() == {bob.user.id}
    assert batch.resync_reason is None
    far = {**since, ada.user.id: since[ada.user.id] + 99}
    await share(ada, bob, *READ)
    assert (await Follower(bob, far).batch()).resync_reason is ResyncReason.CURSOR_UNKNOWN


async def test_cursors_name_all_that_is_heard(ada: Client, bob: Client) -> None:
    box = await team(ada, "One")
    await share(ada, bob, "READ", "SEEN")
    read: Any = SCALARS[Cursor].parse_value
    cursor = (await bob("{ viewer { user { cursor } } }"))["viewer"]["user"]["cursor"]
    assert read(cursor) == await here(bob)
    since = await here(bob)
    done = await mutate(
        bob, "messageUpdate", "journalCursor", select={"mailbox": {"id": box}}, set={"seen": True}
    )
    reached = read(done["journalCursor"])
    assert reached == {**since, ada.user.id: since[ada.user.id] + 1}
    assert await Follower(bob, reached).silent()
    strangers = (await make_client(ada.world, ada.http, "eve"))("{ viewer { user { cursor } } }")
    assert len(read((await strangers)["viewer"]["user"]["cursor"])) == 1


@pytest.mark.parametrize("by", ["follow", "stream"])
async def test_live_roads_hear_what_is_shared(
    ada: Client, bob: Client, tmp_path: Path, by: str
) -> None:
    await team(ada, "Old")
    eve = await make_client(ada.world, ada.http, "eve")
    async with house(ada.world, tmp_path) as there:
        hearing = [await getattr(there, by)(client, NESTED) for client in (bob, bob, eve)]
        await asyncio.sleep(0.1)
        await share(ada, bob, *READ)
        for one in hearing[:2]:
            await until(lambda one=one: len(one.events) == 1)
            (event,) = one.events
            assert (event["kind"], event["mailbox"]["path"]) == ("MAILBOX_CREATED", "Team")
        await receive(ada, "Private")
        await append_unread_messages(ada, "Team", "New")
        for one in hearing[:2]:
            await until(lambda one=one: len(one.events) == 2)
            event = one.events[1]
            assert (event["kind"], event["user"]) == ("MESSAGE_ADDED", None)
            assert event["message"]["subject"] == "New"
            assert event["message"]["mailbox"] == {"path": "Team"}
        await share(ada, bob)
        await append_unread_messages(ada, "Team", "Unheard")
        await receive(bob, "Own")
        for one in hearing[:2]:
            await until(lambda one=one: len(one.events) == 4)
            assert [event["kind"] for event in one.events[2:]] == [
                "MAILBOX_DELETED",
                "MESSAGE_ADDED",
            ]
        assert hearing[2].events == []
        for one in hearing:
            await one.leave()
