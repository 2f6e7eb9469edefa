"""Followers when the position of a stream jumps, and subscriptions that name a mailbox by path."""

import asyncio
from datetime import timedelta

import pytest

from graph.types import global_ids
from models.events.event_types import EventType
from models.events.journal import MAX_BATCH_EVENTS, StreamPositions
from models.users.roles import Role, Scope
from resolvers.admin import progress
from resolvers.changes.stream_reader import (
    MAX_UNREPORTED_EVENTS,
    EventBatch,
    FollowRequest,
    follow_changes,
    load_last_stream_positions,
)
from resolvers.context import Context, SubscriptionStart
from resolvers.mailboxes import uid_state
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.mailboxes.uid_state import MailboxUidState
from resolvers.messages.filters.message_filter import MessageConditions
from resolvers.queue import events as queue_events
from resolvers.search import saved_searches
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, client_context, deliver_to
from tests.support.accounts.shared_mailboxes import (
    READ_RIGHTS,
    create_team_mailbox,
    run_mailbox_mutation,
    share_mailbox,
)
from tests.support.clients.change_followers import (
    open_subscription,
    received_events,
    wait_for_followers,
)
from tests.support.operations.mailbox_operations import append_unread_messages
from tests.support.servers.live_server import LiveServer, wait_until
from tests.support.time_limits import HANG_SECONDS

MAILBOX_CHANGES = """subscription ($mailbox: MailboxRef!) {
  mailboxChanges(mailbox: $mailbox) { cursor events { type ... on MessageChange {
    message { subject } } } } }"""
SAVED_SEARCH_CREATE = """mutation {
  savedSearchCreate(input: {name: "Unread", query: "is:unread"}) { savedSearch { id } } }"""


async def record_labels(client: GraphQLClient, count: int) -> None:
    """Record events of labels, which don't change any count."""
    ctx = client_context(client)
    async with ctx.write_session(client.user.id) as session:
        ids = list(range(1, count + 1))
        await ctx.record_change(session, client.user.id, EventType.LABEL_UPDATED, ids)


@pytest.mark.parametrize("highest_modseq", [1_000, 50_000])
async def test_follower_resynchronizes_after_a_raised_position(
    ada: GraphQLClient, highest_modseq: int
) -> None:
    batches = list[EventBatch]()

    async def follow() -> None:
        async for batch in follow_changes(client_context(ada), FollowRequest()):
            batches.append(batch)

    following = asyncio.create_task(follow())
    await wait_for_followers(ada.environment)
    viewer = Viewer(ada.user.id, Role.ROOT, frozenset({Scope.FULL}))
    await uid_state.set_uid_state(
        Context(ada.environment, viewer),
        MailboxSelector(path="INBOX"),
        MailboxUidState(min_highest_modseq=highest_modseq),
    )
    await deliver_to(ada, "Later")
    await wait_until(
        lambda: any(
            event.type is EventType.MESSAGE_RECEIVED for batch in batches for event in batch.events
        )
    )
    assert batches[0].resync_reason == "CURSOR_EXPIRED"
    following.cancel()
    await asyncio.wait([following])


async def test_saved_search_is_counted_after_a_page_without_counted_events(
    ada: GraphQLClient,
) -> None:
    created = (await ada(SAVED_SEARCH_CREATE))["savedSearchCreate"]["savedSearch"]
    search_id = global_ids.decode("SavedSearch", created["id"])
    counts = list[int]()

    async def follow() -> None:
        async for _, count in saved_searches.follow_saved_search(
            client_context(ada),
            search_id,
            lambda _filter: MessageConditions(seen=False),
            timedelta(seconds=1),
        ):
            counts.append(count.message_count)

    following = asyncio.create_task(follow())
    await wait_until(lambda: counts == [0])
    # a page of 500 events with the message, and one without counted events
    await record_labels(ada, 494)
    await deliver_to(ada, "New")
    await record_labels(ada, 19)
    await wait_until(lambda: counts == [0, 1])
    following.cancel()
    await asyncio.wait([following])


@pytest.fixture
async def shared_position(ada: GraphQLClient, bob: GraphQLClient) -> StreamPositions:
    """The position of ada, with whom bob shares a mailbox."""
    await create_team_mailbox(bob)
    await share_mailbox(bob, ada, *READ_RIGHTS)
    return await load_last_stream_positions(client_context(ada))


async def test_page_with_more_events_is_followed_by_a_batch(
    ada: GraphQLClient, bob: GraphQLClient, shared_position: StreamPositions
) -> None:
    """The further events are those of an owner, which are not visible."""
    assert ada.user.id < bob.user.id  # so that the page begins with the events of ada
    await record_labels(ada, MAX_BATCH_EVENTS)
    await record_labels(bob, 10)
    batches = follow_changes(client_context(ada), FollowRequest(shared_position))
    async with asyncio.timeout(HANG_SECONDS):
        first, second = [await anext(batches) for _ in range(2)]
    assert (len(first.events), first.has_more) == (MAX_BATCH_EVENTS, True)
    assert (second.events, second.has_more) == ([], False)
    await batches.aclose()


async def test_many_invisible_events_of_an_owner_move_the_position(
    ada: GraphQLClient, bob: GraphQLClient, shared_position: StreamPositions
) -> None:
    batches = follow_changes(
        client_context(ada), FollowRequest(shared_position, min_interval=timedelta(0))
    )
    waiting = asyncio.ensure_future(anext(batches))
    await record_labels(bob, MAX_UNREPORTED_EVENTS - 1)
    await wait_for_followers(ada.environment)
    assert not waiting.done()  # the progress of another user is not reported at once
    await record_labels(bob, 1)
    async with asyncio.timeout(HANG_SECONDS):
        batch = await waiting
    owner_position = shared_position[bob.user.id] + MAX_UNREPORTED_EVENTS
    assert (batch.events, batch.position[bob.user.id]) == ([], owner_position)
    await batches.aclose()


async def test_equal_subscriptions_by_path_follow_different_mailboxes_after_a_rename(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    await run_mailbox_mutation(ada, "mailboxCreate", paths=["Team"])
    variables = {"mailbox": {"path": "Team"}}
    first = await open_subscription(live_server, "follow", ada, MAILBOX_CHANGES, **variables)
    await run_mailbox_mutation(ada, "mailboxRename", mailbox={"path": "Team"}, newPath="Old")
    await run_mailbox_mutation(ada, "mailboxCreate", paths=["Team"])
    second = await open_subscription(live_server, "follow", ada, MAILBOX_CHANGES, **variables)
    await append_unread_messages(ada, "Old", "In old")
    await append_unread_messages(ada, "Team", "In team")
    for follower, subject in ((first, "In old"), (second, "In team")):
        await wait_until(
            lambda follower=follower: any("message" in event for event in received_events(follower))
        )
        subjects = [
            event["message"]["subject"] for event in received_events(follower) if "message" in event
        ]
        assert subjects == [subject]
        await follower.unsubscribe()


async def test_submissions_continue_after_the_last_event_id(ada: GraphQLClient) -> None:
    starts = list[StreamPositions]()
    position: StreamPositions = {ada.user.id: 0}
    ctx = client_context(ada)
    ctx.subscription_start = SubscriptionStart(starts.append, position)
    async with ctx.write_session(ada.user.id) as session:
        await ctx.record_change(session, ada.user.id, EventType.SUBMISSION_UPDATED, [5])
    waiting = asyncio.ensure_future(anext(progress.follow_submissions(ctx)))
    await wait_for_followers(ada.environment)
    assert starts == []  # it began at the position of the client
    waiting.cancel()
    await asyncio.wait([waiting])


def test_queue_follower_passes_a_gap_without_changes() -> None:
    positions = {1: 10}
    for _ in range(20):
        queue_events._advance_read_positions_and_return_unread(  # noqa: SLF001 - a loop without end
            positions, dict(positions), {1: 5_000}, []
        )
    assert positions == {1: 5_000}
