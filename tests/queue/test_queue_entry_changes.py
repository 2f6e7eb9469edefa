"""Subscriptions to the changes of queue entries."""

import asyncio
from typing import Any

from mail.maintenance import restore_mark
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts.shared_mailboxes import run_mailbox_mutation
from tests.support.mail_servers.queue_worker import (
    queue_message,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
    wake_queue_worker,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.queue.queue_entry_operations import enqueue_platform_message, load_queue_id
from tests.support.servers.live_server import LiveServer, wait_until
from tests.support.time_limits import HANG_SECONDS

CHANGES = """subscription ($filter: QueueFilter) { queueEntryChanged(filter: $filter) {
  queueId queueName recipients { recipient state attempts } } }"""


async def test_subscription_reports_arrivals_and_attempts_in_order(
    live_server: LiveServer,
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
    clock: ManualClock,
) -> None:
    follower = await live_server.follow(admin_client, CHANGES)
    held_follower = await live_server.follow(admin_client, CHANGES, filter={"queueName": "HOLD"})

    def last_change() -> Any:
        return follower.results[-1] if follower.results else {"recipients": [], "queueName": ""}

    async with (
        run_smtp_server(FakeSmtpServer({"dave": "450 4.2.1 Later"})) as smtp_server,
        run_queue_worker(environment, relay_settings(smtp_server)),
    ):
        await wait_until_tried(environment, await queue_message(ada))
        expected_states = ["RELAYED", "DEFERRED"]
        await wait_until(
            lambda: (
                [recipient["state"] for recipient in last_change()["recipients"]] == expected_states
            )
        )
        assert [recipient["attempts"] for recipient in last_change()["recipients"]] == [1, 1]
        refs = [{"queueId": last_change()["queueId"]}]
        await run_mailbox_mutation(
            admin_client, "queueHold", "queueEntries { id }", queueEntries=refs
        )
        await wait_until(lambda: last_change()["queueName"] == "HOLD")
        await run_mailbox_mutation(
            admin_client, "queueRelease", "queueEntries { id }", queueEntries=refs
        )
        del smtp_server.rcpt_replies["dave"]
        clock.tick(hours=1)
        wake_queue_worker(environment)
        await wait_until(lambda: last_change()["queueName"] is None)
        assert {recipient["state"] for recipient in last_change()["recipients"]} == {"RELAYED"}
    await wait_until(
        lambda: held_follower.results and held_follower.results[-1]["queueName"] is None
    )
    assert held_follower.results[0]["queueName"] == "HOLD"
    assert await live_server.follow_until_refused(ada, CHANGES) == "FORBIDDEN"
    for subscription in (follower, held_follower):
        await subscription.unsubscribe()


async def test_subscription_continues_after_a_restore(
    live_server: LiveServer,
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
) -> None:
    follower = await live_server.follow(admin_client, CHANGES)
    async with asyncio.timeout(HANG_SECONDS):
        while not follower.results:  # the subscription starts before the first event
            await queue_message(ada)
            await asyncio.sleep(0.05)
    await restore_mark.begin_incarnation_after_consistent_restore(environment)
    entry_id = await load_queue_id(environment, await queue_message(ada))
    await wait_until(lambda: entry_id in {change["queueId"] for change in follower.results})
    await follower.unsubscribe()


async def test_subscription_misses_no_entry(
    live_server: LiveServer,
    ada: GraphQLClient,
    bob: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
) -> None:
    follower = await live_server.follow(admin_client, CHANGES)
    async with asyncio.timeout(HANG_SECONDS):
        while not follower.results:  # the subscription starts before the first event
            await queue_message(ada)
            await asyncio.sleep(0.05)
    submission_ids = []
    for _ in range(30):
        submission_ids += [await queue_message(ada), await queue_message(bob)]
        submission_ids.append(await enqueue_platform_message(environment, submission_ids[0]))
    queue_ids = {
        await load_queue_id(environment, submission_id) for submission_id in submission_ids
    }
    await wait_until(lambda: queue_ids <= {change["queueId"] for change in follower.results})
    received_ids = [change["queueId"] for change in follower.results]
    adas_ids = [
        await load_queue_id(environment, submission_id) for submission_id in submission_ids[::3]
    ]
    assert [entry_id for entry_id in received_ids if entry_id in adas_ids] == adas_ids
    await follower.unsubscribe()
