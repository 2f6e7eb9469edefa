"""The webhook worker: retries, slow and hostile receivers, crashes and leases."""

import asyncio
import contextlib
import logging
import ssl
from collections.abc import AsyncIterator, Sequence
from dataclasses import replace
from datetime import timedelta

import pytest
from sqlalchemy import func, select
from sqlmodel import col

from graph.notifications.webhooks import delivery_body
from mail.network.outbound_http import (
    HttpRequestFailed,
    HttpTarget,
    NetworkPolicy,
    is_private_address,
    post,
)
from models.notifications.webhooks import WebhookDelivery, WebhookLane
from models.runtime.environment import Environment
from resolvers.notifications import webhook_worker
from resolvers.notifications.webhook_feed import create_deliveries_if_webhooks_active
from resolvers.notifications.webhook_worker import FAILURES_BEFORE_PAUSE, MAX_ATTEMPTS
from tests.conftest import GraphQLClient, ManualClock, deliver_to
from tests.support.mail_servers.smtp_and_dns_servers import server_tls_context, trusting_tls_context
from tests.support.servers.webhook_receiver import (
    ReceivedRequest,
    WebhookReceiver,
    create_webhook,
    load_webhook_log,
    make_webhook_worker,
    post_until_idle,
    run_webhook_receiver,
)
from tests.support.servers.webhook_receiver import allow_local_webhooks as let_inward
from tests.support.stores.other_processes import deregister_as_dead

UNAVAILABLE_RESPONSE = b"HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
async def receiver(environment: Environment) -> AsyncIterator[WebhookReceiver]:
    let_inward(environment)
    async with run_webhook_receiver() as http_receiver:
        yield http_receiver


async def delivery_states(client: GraphQLClient, webhook_id: str) -> list[str]:
    """Return the states of the deliveries, oldest first."""
    nodes = (await load_webhook_log(client, webhook_id))["deliveries"]["nodes"]
    return [node["state"] for node in reversed(nodes)]


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


async def test_status_410_deactivates_webhook(
    ada: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver, clock: ManualClock
) -> None:
    receiver.response = b"HTTP/1.1 410 Gone\r\n\r\n"
    webhook_id, _ = await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
    await deliver_to(ada)
    worker = make_webhook_worker(ada.environment)
    await post_until_idle(worker)
    clock.tick(hours=1)
    await deliver_to(ada, "Two")
    await post_until_idle(worker)
    assert len(receiver.requests) == 1
    assert (await load_webhook_log(root, webhook_id))["active"] is False


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n", "status 302: redirec"),
        (b"HTTP/1.1 500 No\r\nContent-Length: 11\r\n\r\nhunter2 key", "status 500"),
        (b"SSH-2.0-OpenSSH\r\n", "the answer is no HTTP"),
        (b"", "the answer ends early"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 9000, "the answer has no end"),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "the answer ends early"),
    ],
)
async def test_invalid_response_is_recorded_as_error(
    ada: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver, answer: bytes, error: str
) -> None:
    receiver.response = answer
    webhook_id, secret = await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
    await deliver_to(ada)
    await post_until_idle(make_webhook_worker(ada.environment))
    log = await load_webhook_log(root, webhook_id)
    (entry,) = log["deliveries"]["nodes"]
    assert (entry["state"], entry["attempt"]) == ("PENDING", 1)
    assert str(entry["error"]).startswith(error)
    assert "hunter2" not in str(log)
    assert secret not in str(log)


async def test_endless_response_body_is_not_read(
    ada: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver
) -> None:
    sent_bytes = [0]

    async def answer(_got: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent_bytes[0] += 65536

    receiver.response = answer
    webhook_id, _ = await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
    await deliver_to(ada)
    async with asyncio.timeout(5):
        await post_until_idle(make_webhook_worker(ada.environment))
    assert await delivery_states(root, webhook_id) == ["DELIVERED"]
    assert sent_bytes[0] < 64 << 20


async def answer_slowly(_got: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
    """Send an endless response, one byte at a time."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X")
        await writer.drain()
        await asyncio.sleep(0.02)


async def test_slow_receiver_does_not_delay_other_receivers(
    ada: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver
) -> None:
    async with run_webhook_receiver() as slow_receiver:
        slow_receiver.response = answer_slowly
        webhook_id, _ = await create_webhook(root, slow_receiver.url, "MESSAGE_RECEIVED")
        await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
        worker = make_webhook_worker(ada.environment, timeout_seconds=4.0)
        for n in range(5):
            await deliver_to(ada, f"No. {n}")
        started_at = asyncio.get_running_loop().time()
        pump_task = asyncio.create_task(post_until_idle(worker))
        await receiver.wait_for_requests(5)
        assert asyncio.get_running_loop().time() - started_at < 3.5
        await pump_task
        assert [request.body["objects"][0]["uid"] for request in receiver.requests] == [
            1,
            2,
            3,
            4,
            5,
        ]
        assert len(slow_receiver.requests) == 1
        entry = (await load_webhook_log(root, webhook_id))["deliveries"]["nodes"][-1]
        assert entry["error"] == "no answer within 4 seconds"


async def test_concurrent_requests_to_a_receiver_are_one_per_account(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver
) -> None:
    async def answer(_got: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

    receiver.response = answer
    await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
    for n in range(2):
        await deliver_to(ada, f"Hers {n}")
        await deliver_to(bob, f"His {n}")
    await post_until_idle(make_webhook_worker(ada.environment))
    assert (receiver.max_open_requests, len(receiver.requests)) == (2, 4)  # the number of accounts
    for name in ("ada", "bob"):
        requests = [
            request for request in receiver.requests if request.body["user"]["username"] == name
        ]
        assert [request.body["objects"][0]["uid"] for request in requests] == [1, 2]


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
    let_inward(crashing_worker.environment)
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
    worker_task = asyncio.create_task(webhook_worker.run_worker(ada.environment, delivery_body))
    async with asyncio.timeout(5):
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
    worker_task = asyncio.create_task(webhook_worker.run_worker(ada.environment, delivery_body))
    async with asyncio.timeout(30):  # until the first round is complete
        statement_count = -1
        while not statements or len(statements) > statement_count:
            statement_count = len(statements)
            await asyncio.sleep(0.3)
    del statements[:]
    await deliver_to(ada, "Unheard")
    await asyncio.sleep(0.1)
    assert not any("webhook" in statement for statement in statements)
    await create_webhook(root, receiver.url, "MESSAGE_RECEIVED", user={"username": "ada"})
    await deliver_to(ada, "Heard")
    async with asyncio.timeout(5):
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


async def test_private_addresses_are_not_contacted(
    ada: GraphQLClient,
    root: GraphQLClient,
    environment: Environment,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with run_webhook_receiver() as private_receiver:
        resolved: list[tuple[str, int]] = []

        async def resolve(host: str, port: int) -> Sequence[str]:
            resolved.append((host, port))
            return ["127.0.0.1", "::ffff:127.0.0.1"]

        url = f"http://hooks.example.com:{private_receiver.port}/?token=s3cret"
        webhook_id, secret = await create_webhook(root, url, "MESSAGE_RECEIVED")
        await deliver_to(ada)
        with caplog.at_level(logging.DEBUG):
            await post_until_idle(make_webhook_worker(environment, resolve=resolve))
        assert resolved == [("hooks.example.com", private_receiver.port)]
        assert private_receiver.requests == []
        (entry,) = (await load_webhook_log(root, webhook_id))["deliveries"]["nodes"]
        assert entry["error"] == "the host is inside"
        logged = " ".join(str(vars(record)) for record in caplog.records)
        assert "s3cret" not in logged
        assert secret not in logged


async def test_checked_address_is_the_one_contacted(
    ada: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver, environment: Environment
) -> None:
    answers = [["127.0.0.1"], ["127.0.0.9"]]

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return answers.pop(0)

    url = f"http://hooks.example.com:{receiver.port}/x"
    await create_webhook(root, url, "MESSAGE_RECEIVED")
    await deliver_to(ada)
    await post_until_idle(make_webhook_worker(environment, resolve=resolve))
    (request,) = receiver.requests
    assert request.headers["host"] == f"hooks.example.com:{receiver.port}"
    assert len(answers) == 1  # resolved once


async def test_certificate_is_verified_for_host_name() -> None:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    async with run_webhook_receiver(server_tls_context()) as receiver:
        policy = NetworkPolicy(
            allows_private=True, trusted_context=trusting_tls_context(), resolve=resolve
        )
        target = HttpTarget(True, "mx1.example.net", receiver.port, "/")
        assert await post(target, {}, b"{}", policy) == 200
        with pytest.raises(HttpRequestFailed, match="TLS"):
            await post(replace(target, host="other.example.com"), {}, b"{}", policy)
        strict_policy = replace(policy, trusted_context=ssl.create_default_context())
        with pytest.raises(HttpRequestFailed, match="TLS"):
            await post(target, {}, b"{}", strict_policy)
        with pytest.raises(HttpRequestFailed, match="inside"):
            await post(target, {}, b"{}", replace(policy, allows_private=False))


@pytest.mark.parametrize(
    ("address", "is_private"),
    [
        ("127.0.0.1", True), ("10.0.0.1", True), ("172.31.255.255", True),
        ("0.0.0.0", True),  # noqa: S104 - not an address to listen on
        ("192.168.1.1", True), ("169.254.169.254", True), ("100.64.0.1", True),
        ("224.0.0.1", True), ("255.255.255.255", True), ("240.0.0.1", True), ("192.0.0.1", True),
        ("::", True), ("::1", True), ("::ffff:127.0.0.1", True), ("::ffff:8.8.8.8", False),
        ("::127.0.0.1", True), ("fe80::1%eth0", True), ("fc00::1", True), ("ff02::1", True),
        ("64:ff9b::10.0.0.1", True), ("64:ff9b::8.8.8.8", False), ("2002:7f00:1::", True),
        ("64:ff9b:1::1", True), ("2001:db8::1", True), ("2001:0:7f00:1::", True),
        ("8.8.8.8", False), ("2606:4700::1111", False),
    ],
)  # fmt: skip
def test_private_addresses_are_detected(address: str, is_private: bool) -> None:
    assert is_private_address(address) is is_private


async def test_retry_delay_grows_and_is_random() -> None:
    for attempts in range(1, MAX_ATTEMPTS + 3):
        least, most = (
            webhook_worker.retry_delay(attempts, 0.0),
            webhook_worker.retry_delay(attempts, 1.0),
        )
        assert timedelta(0) < least < most <= timedelta(hours=5)
    assert webhook_worker.retry_delay(5, 0.5) > 10 * webhook_worker.retry_delay(1, 0.5)


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
