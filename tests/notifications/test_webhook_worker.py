"""The webhook worker: order, retries, crashes and leases."""

import asyncio
import contextlib
from dataclasses import replace
from datetime import timedelta

from sqlalchemy import func, select
from sqlmodel import col

from graph.notifications.webhooks import delivery_body
from models.notifications.webhooks import WebhookDelivery, WebhookLane
from resolvers.notifications import webhook_results, webhook_worker
from resolvers.notifications.webhook_feed import create_deliveries_if_webhooks_active
from resolvers.notifications.webhook_results import FAILURES_BEFORE_PAUSE, MAX_ATTEMPTS
from tests.conftest import GraphQLClient, ManualClock, deliver_to
from tests.support.servers.live_server import wait_until
from tests.support.servers.webhook_receiver import (
    ReceivedRequest,
    WebhookReceiver,
    allow_local_webhooks,
    create_webhook,
    delivery_states,
    load_webhook_log,
    make_webhook_worker,
    post_until_idle,
    receiver,
)
from tests.support.stores.other_processes import deregister_as_dead
from tests.support.time_limits import HANG_SECONDS

__all__ = ["receiver"]
UNAVAILABLE_RESPONSE = b"HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n"


async def test_failed_delivery_is_retried_in_order(
    ada: GraphQLClient,
    bob: GraphQLClient,
    root: GraphQLClient,
    receiver: WebhookReceiver,
    clock: ManualClock,
) -> None:
    environment, failing = ada.environment, [True]

    async def answer(request: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        of_ada = request.body["user"]["username"] == "ada"
        writer.write(UNAVAILABLE_RESPONSE if of_ada and failing else b"HTTP/1.1 204 No\r\n\r\n")

    receiver.response = answer
    webhook_id, _ = await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
    for subject in ("One", "Two"):
        await deliver_to(ada, subject)
    await deliver_to(bob, "His")
    worker = make_webhook_worker(environment)
    await post_until_idle(worker)
    assert sorted(request.body["user"]["username"] for request in receiver.requests) == [
        "ada",
        "bob",
    ]
    assert await delivery_states(root, webhook_id) == ["PENDING", "PENDING", "DELIVERED"]
    await post_until_idle(worker)
    assert len(receiver.requests) == 2  # the retry is not due
    failing.clear()
    clock.tick(seconds=7)
    await post_until_idle(worker)
    of_ada = [request for request in receiver.requests if request.body["user"]["username"] == "ada"]
    assert [request.body["objects"][0]["uid"] for request in of_ada] == [1, 1, 2]
    assert of_ada[0].body == of_ada[1].body
    log = await load_webhook_log(root, webhook_id)
    assert log["failures"] == 0
    assert {(n["state"], n["error"]) for n in log["deliveries"]["nodes"]} == {("DELIVERED", None)}


async def test_expired_delivery_is_dead_and_next_one_is_sent(
    ada: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver, clock: ManualClock
) -> None:
    receiver.response = UNAVAILABLE_RESPONSE
    webhook_id, _ = await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
    await deliver_to(ada, "Poison")
    worker = make_webhook_worker(ada.environment)
    for _ in range(MAX_ATTEMPTS):
        await post_until_idle(worker)
        clock.tick(hours=1)
    clock.tick(hours=20)
    await deliver_to(ada, "Good")
    await post_until_idle(worker)
    receiver.response = b"HTTP/1.1 200 OK\r\n\r\n"
    clock.tick(hours=5)
    await post_until_idle(worker)
    assert await delivery_states(root, webhook_id) == ["FAILED", "DELIVERED"]
    assert receiver.requests[-1].body["objects"][0]["uid"] == 2


async def test_failing_receiver_is_paused_and_probed_once(
    ada: GraphQLClient,
    bob: GraphQLClient,
    root: GraphQLClient,
    receiver: WebhookReceiver,
    clock: ManualClock,
) -> None:
    receiver.response = UNAVAILABLE_RESPONSE
    webhook_id, _ = await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
    worker = make_webhook_worker(ada.environment)
    for _ in range(FAILURES_BEFORE_PAUSE):
        await deliver_to(ada)
        await post_until_idle(worker)
        clock.tick(minutes=30)
    attempt_count = len(receiver.requests)
    assert (
        (await load_webhook_log(root, webhook_id))["failures"]
        == attempt_count
        == FAILURES_BEFORE_PAUSE
    )
    await deliver_to(bob)
    await post_until_idle(worker)
    assert len(receiver.requests) == attempt_count + 1  # although two lanes were due
    await post_until_idle(worker)
    assert len(receiver.requests) == attempt_count + 1  # paused
    receiver.response = b"HTTP/1.1 200 OK\r\n\r\n"
    clock.tick(hours=2)
    await post_until_idle(worker)
    assert set(await delivery_states(root, webhook_id)) == {"DELIVERED"}


class WebhookWorkerCrash(BaseException):
    """A simulated end of the process."""


async def test_crash_after_request_repeats_the_request(
    ada: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver
) -> None:
    environment = ada.environment
    webhook_id, _ = await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
    await deliver_to(ada, "One")

    def crash_after_request(fault_point: str) -> None:
        if fault_point == "posted":
            raise WebhookWorkerCrash

    crashing_worker = make_webhook_worker(
        replace(environment, reach_fault_point=crash_after_request)
    )
    allow_local_webhooks(crashing_worker.environment)
    with contextlib.suppress(WebhookWorkerCrash):
        await post_until_idle(crashing_worker)
    assert len(receiver.requests) == 1
    assert await delivery_states(root, webhook_id) == ["PENDING"]
    next_worker = make_webhook_worker(environment)
    await post_until_idle(next_worker)
    assert len(receiver.requests) == 1  # the crashed worker still has the lease
    await deregister_as_dead(environment)
    await post_until_idle(next_worker)
    assert [request.body["id"] for request in receiver.requests] == [
        receiver.requests[0].body["id"]
    ] * 2
    assert await delivery_states(root, webhook_id) == ["DELIVERED"]


async def test_events_before_worker_start_are_posted(
    ada: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver
) -> None:
    await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
    for n in range(3):
        await deliver_to(ada, f"No. {n}")  # no worker runs
    worker_task = asyncio.create_task(
        webhook_worker.run_webhook_worker_until_stopped(ada.environment, delivery_body)
    )
    async with asyncio.timeout(HANG_SECONDS):
        await receiver.wait_for_requests(3)
        await deliver_to(ada, "Live")
        await receiver.wait_for_requests(4)
    worker_task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await worker_task
    assert [request.body["objects"][0]["uid"] for request in receiver.requests] == [1, 2, 3, 4]


async def test_worker_without_webhooks_executes_no_statement(
    ada: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver, statements: list[str]
) -> None:
    worker_task = asyncio.create_task(
        webhook_worker.run_webhook_worker_until_stopped(ada.environment, delivery_body)
    )

    def is_worker_idle() -> bool:
        return any(wakeup.is_idle for wakeup in ada.environment.wakeups.growth_events)

    await wait_until(is_worker_idle)
    assert any("webhook" in statement for statement in statements)  # of the first round
    del statements[:]
    await deliver_to(ada, "Unheard")
    await wait_until(is_worker_idle)  # the worker was woken
    assert not any("webhook" in statement for statement in statements)
    await create_webhook(root, receiver.url, "MESSAGE_RECEIVED", user={"username": "ada"})
    await deliver_to(ada, "Heard")
    async with asyncio.timeout(HANG_SECONDS):
        await receiver.wait_for_requests(1)
    worker_task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await worker_task


async def test_several_workers_post_each_event_once_in_order(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver
) -> None:
    await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
    workers = [make_webhook_worker(ada.environment) for _ in range(4)]
    for n in range(10):
        await deliver_to(ada, f"Hers {n}")
        await deliver_to(bob, f"His {n}")
        await asyncio.gather(*(post_until_idle(worker) for worker in workers))
    assert len(receiver.requests) == 20
    for name in ("ada", "bob"):
        requests = [
            request for request in receiver.requests if request.body["user"]["username"] == name
        ]
        assert [request.body["objects"][0]["uid"] for request in requests] == list(range(1, 11))


async def test_worker_that_lost_its_lease_writes_nothing(
    ada: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver
) -> None:
    environment, release = ada.environment, asyncio.Event()

    async def answer(_got: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        if len(receiver.requests) == 1:
            await release.wait()
        writer.write(
            b"HTTP/1.1 200 OK\r\n\r\n" if len(receiver.requests) == 2 else UNAVAILABLE_RESPONSE
        )

    receiver.response = answer
    webhook_id, _ = await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
    await deliver_to(ada)
    slow_task = asyncio.create_task(post_until_idle(make_webhook_worker(environment)))
    await receiver.wait_for_requests(1)
    await deregister_as_dead(environment)
    await post_until_idle(make_webhook_worker(environment))
    release.set()
    await slow_task
    (entry,) = (await load_webhook_log(root, webhook_id))["deliveries"]["nodes"]
    assert (entry["state"], entry["attempt"], entry["status"]) == ("DELIVERED", 1, 200)


async def test_deleting_webhook_deletes_its_deliveries(
    ada: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver
) -> None:
    webhook_id, _ = await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
    await deliver_to(ada)
    await create_deliveries_if_webhooks_active(ada.environment)
    deletion = (
        "mutation ($id: ID!) { webhookDelete(input: {webhooks: [{id: $id}]}) { deletedIds } }"
    )
    assert (await root(deletion, id=webhook_id))["webhookDelete"]["deletedIds"] == [webhook_id]
    for table in (WebhookDelivery, WebhookLane):
        ((row_count,),) = await ada.environment.database.read(
            select(func.count()).select_from(table)
        )
        assert row_count == 0
    await post_until_idle(make_webhook_worker(ada.environment))
    assert receiver.requests == []


async def test_retry_delay_grows_and_is_random() -> None:
    for attempts in range(1, MAX_ATTEMPTS + 3):
        least = webhook_results.retry_delay(attempts, 0.0)
        most = webhook_results.retry_delay(attempts, 1.0)
        assert timedelta(0) < least < most <= timedelta(hours=5)
    assert webhook_results.retry_delay(5, 0.5) > 10 * webhook_results.retry_delay(1, 0.5)


async def test_journal_is_read_with_constant_statements(
    ada: GraphQLClient,
    bob: GraphQLClient,
    root: GraphQLClient,
    receiver: WebhookReceiver,
    statements: list[str],
) -> None:
    await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
    await create_deliveries_if_webhooks_active(ada.environment)
    statement_counts = []
    for message_count in (1, 20):
        for n in range(message_count):
            await deliver_to(ada, f"{message_count} {n}")
            await deliver_to(bob, f"{message_count} {n}")
        del statements[:]
        await create_deliveries_if_webhooks_active(ada.environment)
        statement_counts.append(len(statements))
    assert statement_counts[0] == statement_counts[1]
    rows = await ada.environment.database.read(select(col(WebhookDelivery.id)))
    assert len(rows) == 42
