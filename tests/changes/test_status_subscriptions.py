"""Subscriptions to the current state of mailbox counters, tasks and submissions."""

from datetime import timedelta

import pytest

from graph.types import global_ids
from models.runtime.environment import Environment
from resolvers.admin import tasks
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes.create import NewMailboxes
from resolvers.submission import mutations as submission_mutations
from tests.conftest import GraphQLClient, client_context, deliver_to
from tests.support.accounts.shared_mailboxes import (
    READ_RIGHTS,
    create_team_mailbox,
    run_mailbox_mutation,
    share_mailbox,
)
from tests.support.clients.change_followers import wait_for_followers
from tests.support.operations.mailbox_operations import append_unread_messages
from tests.support.operations.send_operations import send_outgoing_message
from tests.support.servers.live_server import LiveServer, SubscriptionFollower, wait_until

COUNTERS_SUBSCRIPTION = (
    "subscription ($user: UserRef) { mailboxCounters(user: $user) { path messageCount "
    "unseenCount } }"
)
TASK_SUBSCRIPTION = (
    "subscription ($id: ID!) { taskProgress(task: {id: $id}) { state doneCount totalCount } }"
)
SUBMISSION_SUBSCRIPTION = (
    "subscription ($submission: SubmissionRef) {"
    " submissionProgress(submission: $submission) { id state } }"
)
EACH_TRANSPORT = pytest.mark.parametrize("transport", ["follow", "stream"])


def latest_counters(follower: SubscriptionFollower) -> dict[str, tuple[int, int]]:
    """Return total and unseen by path, merged from all results."""
    return {
        mailbox["path"]: (mailbox["messageCount"], mailbox["unseenCount"])
        for result in follower.results
        for mailbox in result
    }


@EACH_TRANSPORT
async def test_counters_of_all_mailboxes_come_first_then_changed_ones(
    live_server: LiveServer, ada: GraphQLClient, transport: str
) -> None:
    await deliver_to(ada, "Old")
    follower: SubscriptionFollower = await getattr(live_server, transport)(
        ada, COUNTERS_SUBSCRIPTION
    )
    await wait_until(lambda: follower.payloads)
    (first,) = follower.results
    assert len(first) == 5
    assert latest_counters(follower)["INBOX"] == (1, 1)
    await deliver_to(ada, "New")
    await wait_until(lambda: len(follower.payloads) == 2)
    assert follower.results[1] == [{"path": "INBOX", "messageCount": 2, "unseenCount": 2}]
    select = {"mailbox": {"path": "INBOX"}}
    await run_mailbox_mutation(
        ada, "messageUpdate", "updatedCount", select=select, set={"flagged": True}
    )
    await run_mailbox_mutation(
        ada, "messageUpdate", "updatedCount", select=select, set={"seen": True}
    )
    await wait_until(lambda: latest_counters(follower)["INBOX"] == (2, 0))
    assert len(follower.payloads) == 3  # a change of another flag changes no counter
    await run_mailbox_mutation(ada, "mailboxCreate", paths=["Box"])
    await run_mailbox_mutation(ada, "messageMove", "movedCount", select=select, to={"path": "Box"})
    await wait_until(lambda: latest_counters(follower).get("Box") == (2, 0))
    assert latest_counters(follower)["INBOX"] == (0, 0)
    await follower.unsubscribe()


async def test_event_has_at_most_250_mailboxes(live_server: LiveServer, ada: GraphQLClient) -> None:
    paths = [f"Box {number:03}" for number in range(300)]
    await mailbox_create.create_mailboxes(client_context(ada), NewMailboxes(paths))
    follower = await live_server.follow(ada, COUNTERS_SUBSCRIPTION)
    await wait_until(lambda: len(follower.payloads) == 2)
    assert [len(result) for result in follower.results] == [250, 55]
    assert latest_counters(follower).keys() >= {"INBOX", *paths}
    await deliver_to(ada, "New")
    await wait_until(lambda: len(follower.payloads) == 3)
    assert follower.results[2] == [{"path": "INBOX", "messageCount": 1, "unseenCount": 1}]
    await follower.unsubscribe()


async def test_counter_changes_are_batched(live_server: LiveServer, ada: GraphQLClient) -> None:
    follower = await live_server.follow(ada, COUNTERS_SUBSCRIPTION)
    await wait_until(lambda: follower.payloads)
    for number in range(20):
        await deliver_to(ada, f"Number {number}")
    await wait_until(lambda: latest_counters(follower)["INBOX"] == (20, 20))
    assert len(follower.payloads) < 20
    assert all(len(result) == 1 for result in follower.results[1:])
    await follower.unsubscribe()


async def test_counters_of_mailbox_are_sent_while_it_is_shared(
    live_server: LiveServer, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    await create_team_mailbox(ada, "Old")
    follower = await live_server.follow(bob, COUNTERS_SUBSCRIPTION)
    await wait_until(lambda: follower.payloads)
    assert "Team" not in latest_counters(follower)
    await append_unread_messages(ada, "Team", "Unheard")
    await share_mailbox(ada, bob, *READ_RIGHTS)
    await wait_until(lambda: latest_counters(follower).get("Team") == (2, 2))
    await append_unread_messages(ada, "Team", "New")
    await wait_until(lambda: latest_counters(follower)["Team"] == (3, 3))
    await deliver_to(ada, "Private")
    await share_mailbox(ada, bob)
    count = len(follower.payloads)
    await append_unread_messages(ada, "Team", "Unheard too")
    assert latest_counters(follower)["INBOX"] == (0, 0)
    await deliver_to(bob, "Own")
    await wait_until(lambda: len(follower.payloads) > count)
    assert follower.results[count:] == [[{"path": "INBOX", "messageCount": 1, "unseenCount": 1}]]
    second_follower = await live_server.follow(bob, COUNTERS_SUBSCRIPTION)
    await wait_until(lambda: second_follower.payloads)
    assert "Team" not in latest_counters(second_follower)
    for subscription in (follower, second_follower):
        await subscription.unsubscribe()


async def test_admin_can_follow_counters_of_another_account(
    live_server: LiveServer, ada: GraphQLClient, bob: GraphQLClient, admin_client: GraphQLClient
) -> None:
    follower = await live_server.follow(
        admin_client, COUNTERS_SUBSCRIPTION, user={"username": "ada"}
    )
    await wait_until(lambda: follower.payloads)
    await deliver_to(admin_client, "Own")
    await deliver_to(ada, "Theirs")
    await wait_until(lambda: latest_counters(follower)["INBOX"] == (1, 1))
    await follower.unsubscribe()
    assert (
        await live_server.follow_until_refused(bob, COUNTERS_SUBSCRIPTION, user={"username": "ada"})
        == "NOT_FOUND"
    )


async def create_task(client: GraphQLClient) -> str:
    """Create a task that flags three messages, and return its id. The task is not started."""
    for number in range(3):
        await deliver_to(client, f"Number {number}")
    select = {"mailbox": {"path": "INBOX"}}
    variables = {"select": select, "set": {"flagged": True}, "async": True}
    created = await run_mailbox_mutation(client, "messageUpdate", "task { id state }", **variables)
    assert created["task"]["state"] == "QUEUED"
    return str(created["task"]["id"])


@EACH_TRANSPORT
async def test_task_subscription_ends_with_the_task(
    live_server: LiveServer, ada: GraphQLClient, environment: Environment, transport: str
) -> None:
    task_id = await create_task(ada)
    follower: SubscriptionFollower = await getattr(live_server, transport)(
        ada, TASK_SUBSCRIPTION, id=task_id
    )
    await wait_until(lambda: follower.payloads)
    assert follower.results[0]["state"] == "QUEUED"
    assert await tasks.run_next_task(environment)
    await wait_until(lambda: follower.end_frame)
    last = follower.results[-1]
    assert (last["state"], last["doneCount"]) == ("SUCCEEDED", 3)
    states = [(result["state"], result["doneCount"]) for result in follower.results]
    assert len(states) == len(set(states))
    await follower.unsubscribe()
    second_follower = await live_server.follow(ada, TASK_SUBSCRIPTION, id=task_id)
    await wait_until(lambda: second_follower.end_frame)
    assert second_follower.results == [last]
    await second_follower.unsubscribe()


async def test_task_can_be_followed_only_by_users_who_can_read_it(
    live_server: LiveServer, ada: GraphQLClient, bob: GraphQLClient, admin_client: GraphQLClient
) -> None:
    task_id = await create_task(ada)
    assert await live_server.follow_until_refused(bob, TASK_SUBSCRIPTION, id=task_id) == "NOT_FOUND"
    assert (
        await live_server.follow_until_refused(
            ada, TASK_SUBSCRIPTION, id=global_ids.encode("Task", 1)
        )
        == "NOT_FOUND"
    )
    assert await live_server.follow_until_refused(ada, TASK_SUBSCRIPTION, id="x") == "BAD_ID"
    follower = await live_server.follow(admin_client, TASK_SUBSCRIPTION, id=task_id)
    await wait_until(lambda: follower.payloads)
    await run_mailbox_mutation(ada, "taskCancel", "tasks { id }", tasks=[{"id": task_id}])
    await wait_until(lambda: follower.end_frame)
    assert follower.results[-1]["state"] == "CANCELLED"
    await follower.unsubscribe()


async def test_platform_task_can_be_followed_only_by_admins(
    live_server: LiveServer,
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
) -> None:
    created = await run_mailbox_mutation(
        admin_client, "quotaRecalculate", "task { id }", users={"all": True}
    )
    task_id = created["task"]["id"]
    assert await live_server.follow_until_refused(ada, TASK_SUBSCRIPTION, id=task_id) == "NOT_FOUND"
    follower = await live_server.follow(admin_client, TASK_SUBSCRIPTION, id=task_id)
    await wait_until(lambda: follower.payloads)
    assert await tasks.run_next_task(environment)
    await wait_until(lambda: follower.end_frame)
    assert follower.results[-1]["state"] == "SUCCEEDED"
    await follower.unsubscribe()


@EACH_TRANSPORT
async def test_submission_subscription_ends_with_the_submission(
    live_server: LiveServer, ada: GraphQLClient, bob: GraphQLClient, transport: str
) -> None:
    sent = await send_outgoing_message(ada, undo_window=timedelta(seconds=30))
    assert sent.submission
    submission_id = global_ids.encode("Submission", sent.submission.id)
    assert (
        await live_server.follow_until_refused(
            bob, SUBMISSION_SUBSCRIPTION, submission={"id": submission_id}
        )
        == "NOT_FOUND"
    )
    follower: SubscriptionFollower = await getattr(live_server, transport)(
        ada, SUBMISSION_SUBSCRIPTION, submission={"id": submission_id}
    )
    await wait_until(lambda: follower.payloads)
    await submission_mutations.cancel_submissions(client_context(ada), [sent.submission.id])
    await wait_until(lambda: follower.end_frame)
    assert [result["state"] for result in follower.results] == ["UNDOABLE", "CANCELLED"]
    await follower.unsubscribe()


async def test_submission_without_change_is_not_sent_again(
    live_server: LiveServer, ada: GraphQLClient
) -> None:
    sent = await send_outgoing_message(ada, undo_window=timedelta(seconds=30))
    assert sent.submission
    reference = {"id": global_ids.encode("Submission", sent.submission.id)}
    follower = await live_server.follow(ada, SUBMISSION_SUBSCRIPTION, submission=reference)
    await wait_until(lambda: follower.payloads)
    for number in range(3):
        await wait_for_followers(ada.environment)
        await deliver_to(ada, f"Number {number}")
    await submission_mutations.cancel_submissions(client_context(ada), [sent.submission.id])
    await wait_until(lambda: follower.end_frame)
    assert [result["state"] for result in follower.results] == ["UNDOABLE", "CANCELLED"]
    await follower.unsubscribe()


async def test_all_submissions_of_viewer_can_be_followed(
    live_server: LiveServer, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    follower = await live_server.follow(ada, SUBMISSION_SUBSCRIPTION)
    await wait_for_followers(ada.environment)
    await send_outgoing_message(bob)
    first = await send_outgoing_message(ada, undo_window=timedelta(seconds=30))
    await wait_until(lambda: follower.payloads)
    second = await send_outgoing_message(ada, undo_window=timedelta(seconds=30))
    assert first.submission
    assert second.submission
    await submission_mutations.cancel_submissions(client_context(ada), [first.submission.id])
    await wait_until(lambda: len(follower.payloads) >= 3)
    states = [
        (global_ids.decode("Submission", result["id"]), result["state"])
        for result in follower.results
    ]
    assert states[0] == (first.submission.id, "UNDOABLE")
    assert set(states[1:]) == {
        (second.submission.id, "UNDOABLE"),
        (first.submission.id, "CANCELLED"),
    }
    await follower.unsubscribe()
