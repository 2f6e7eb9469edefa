"""What is followed as it is now: counters of folders, tasks, and messages on their way."""

import asyncio
from datetime import timedelta

import pytest

from graph.types import global_ids
from models.runtime.environment import Environment
from resolvers.admin import tasks
from resolvers.submission import mutations as submission_mutations
from tests.conftest import Client, context, receive
from tests.support.accounts.shared_mailboxes import READ, mutate, share, team
from tests.support.operations.mailbox_operations import append_unread_messages
from tests.support.operations.send_operations import send_outgoing_message
from tests.support.servers.live_server import Follower, House, until

COUNTERS = "subscription ($user: UserRef) { counters(user: $user) { path total unseen } }"
TASK = "subscription ($id: ID!) { taskProgress(id: $id) { state done total } }"
SENDING = "subscription ($id: ID) { submissionProgress(id: $id) { id state } }"
BOTH = pytest.mark.parametrize("by", ["follow", "stream"])


def counted(follower: Follower) -> dict[str, tuple[int, int]]:
    """The counters as a client has them that keeps what it is told."""
    return {one["path"]: (one["total"], one["unseen"]) for some in follower.results for one in some}


# counters


@BOTH
async def test_all_folders_come_first_and_then_those_that_change(
    live: House, ada: Client, by: str
) -> None:
    await receive(ada, "Old")
    follower: Follower = await getattr(live, by)(ada, COUNTERS)
    await until(lambda: follower.got)
    (first,) = follower.results
    assert len(first) == 5
    assert counted(follower)["INBOX"] == (1, 1)
    await receive(ada, "New")
    await until(lambda: len(follower.got) == 2)
    assert follower.results[1] == [{"path": "INBOX", "total": 2, "unseen": 2}]
    select = {"mailbox": {"path": "INBOX"}}
    await mutate(ada, "messageUpdate", "updatedCount", select=select, set={"flagged": True})
    await mutate(ada, "messageUpdate", "updatedCount", select=select, set={"seen": True})
    await until(lambda: counted(follower)["INBOX"] == (2, 0))
    assert len(follower.got) == 3  # a flag alone changes no counter
    await mutate(ada, "mailboxCreate", paths=["Box"])
    await mutate(ada, "messageMove", "movedCount", select=select, to={"path": "Box"})
    await until(lambda: counted(follower).get("Box") == (2, 0))
    assert counted(follower)["INBOX"] == (0, 0)
    await follower.leave()


async def test_counters_gather_what_comes_together(live: House, ada: Client) -> None:
    follower = await live.follow(ada, COUNTERS)
    await until(lambda: follower.got)
    for number in range(20):
        await receive(ada, f"Number {number}")
    await until(lambda: counted(follower)["INBOX"] == (20, 20))
    assert len(follower.got) < 20
    assert all(len(some) == 1 for some in follower.results[1:])
    await follower.leave()


async def test_counters_of_shared_folders_are_told_as_long_as_they_are_shared(
    live: House, ada: Client, bob: Client
) -> None:
    await team(ada, "Old")
    follower = await live.follow(bob, COUNTERS)
    await until(lambda: follower.got)
    assert "Team" not in counted(follower)
    await append_unread_messages(ada, "Team", "Unheard")
    await share(ada, bob, *READ)
    await until(lambda: counted(follower).get("Team") == (2, 2))
    await append_unread_messages(ada, "Team", "New")
    await until(lambda: counted(follower)["Team"] == (3, 3))
    await receive(ada, "Private")
    await share(ada, bob)
    many = len(follower.got)
    await append_unread_messages(ada, "Team", "Unheard too")
    await asyncio.sleep(0.2)
    assert len(follower.got) == many
    assert counted(follower)["INBOX"] == (0, 0)
    again = await live.follow(bob, COUNTERS)
    await until(lambda: again.got)
    assert "Team" not in counted(again)
    for one in (follower, again):
        await one.leave()


async def test_an_administrator_follows_counters_of_an_account(
    live: House, ada: Client, bob: Client, over: Client
) -> None:
    follower = await live.follow(over, COUNTERS, user={"username": "ada"})
    await until(lambda: follower.got)
    await receive(over, "Own")
    await receive(ada, "Theirs")
    await until(lambda: counted(follower)["INBOX"] == (1, 1))
    await follower.leave()
    assert await live.refused(bob, COUNTERS, user={"username": "ada"}) == "NOT_FOUND"


# tasks


async def ordered(client: Client) -> str:
    """The id of a task that flags three messages, not begun yet."""
    for number in range(3):
        await receive(client, f"Number {number}")
    select = {"mailbox": {"path": "INBOX"}}
    given = {"select": select, "set": {"flagged": True}, "async": True}
    made = await mutate(client, "messageUpdate", "task { id state }", **given)
    assert made["task"]["state"] == "QUEUED"
    return str(made["task"]["id"])


@BOTH
async def test_a_task_is_followed_to_its_end(
    live: House, ada: Client, world: Environment, by: str
) -> None:
    key = await ordered(ada)
    follower: Follower = await getattr(live, by)(ada, TASK, id=key)
    await until(lambda: follower.got)
    assert follower.results[0]["state"] == "QUEUED"
    assert await tasks.run_next_task(world)
    await until(lambda: follower.over)
    last = follower.results[-1]
    assert (last["state"], last["done"]) == ("SUCCEEDED", 3)
    states = [(one["state"], one["done"]) for one in follower.results]
    assert len(states) == len(set(states))
    await follower.leave()
    again = await live.follow(ada, TASK, id=key)
    await until(lambda: again.over)
    assert again.results == [last]
    await again.leave()


async def test_a_task_is_followed_by_who_sees_it(
    live: House, ada: Client, bob: Client, over: Client
) -> None:
    key = await ordered(ada)
    assert await live.refused(bob, TASK, id=key) == "NOT_FOUND"
    assert await live.refused(ada, TASK, id=global_ids.encode("Task", 1)) == "NOT_FOUND"
    assert await live.refused(ada, TASK, id="x") == "BAD_ID"
    follower = await live.follow(over, TASK, id=key)
    await until(lambda: follower.got)
    await mutate(ada, "taskCancel", "tasks { id }", ids=[key])
    await until(lambda: follower.over)
    assert follower.results[-1]["state"] == "CANCELLED"
    await follower.leave()


async def test_a_task_of_the_platform_is_followed_by_administrators(
    live: House, ada: Client, over: Client, world: Environment
) -> None:
    made = await mutate(over, "quotaRecalculate", "task { id }", users={"all": True})
    key = made["task"]["id"]
    assert await live.refused(ada, TASK, id=key) == "NOT_FOUND"
    follower = await live.follow(over, TASK, id=key)
    await until(lambda: follower.got)
    assert await tasks.run_next_task(world)
    await until(lambda: follower.over)
    assert follower.results[-1]["state"] == "SUCCEEDED"
    await follower.leave()


# messages on their way


@BOTH
async def test_a_submission_is_followed_to_its_end(
    live: House, ada: Client, bob: Client, by: str
) -> None:
    sent = await send_outgoing_message(ada, undo_window=timedelta(seconds=30))
    assert sent.submission
    key = global_ids.encode("Submission", sent.submission.id)
    assert await live.refused(bob, SENDING, id=key) == "NOT_FOUND"
    follower: Follower = await getattr(live, by)(ada, SENDING, id=key)
    await until(lambda: follower.got)
    await submission_mutations.cancel_submissions(context(ada), [sent.submission.id])
    await until(lambda: follower.over)
    assert [one["state"] for one in follower.results] == ["HELD_FOR_UNDO", "CANCELLED"]
    await follower.leave()


async def test_all_submissions_of_the_viewer_are_followed(
    live: House, ada: Client, bob: Client
) -> None:
    follower = await live.follow(ada, SENDING)
    await until(lambda: ada.world.wakeups.followed_streams)
    await asyncio.sleep(0.1)
    await send_outgoing_message(bob)
    one = await send_outgoing_message(ada, undo_window=timedelta(seconds=30))
    await until(lambda: follower.got)
    other = await send_outgoing_message(ada, undo_window=timedelta(seconds=30))
    assert one.submission
    assert other.submission
    await submission_mutations.cancel_submissions(context(ada), [one.submission.id])
    await until(lambda: len(follower.got) >= 3)
    got = [
        (global_ids.decode("Submission", each["id"]), each["state"]) for each in follower.results
    ]
    assert got[0] == (one.submission.id, "HELD_FOR_UNDO")
    assert set(got[1:]) == {
        (other.submission.id, "HELD_FOR_UNDO"),
        (one.submission.id, "CANCELLED"),
    }
    await follower.leave()
