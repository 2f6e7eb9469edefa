"""Slow, failing and private receivers of webhooks."""

import asyncio
import logging
import ssl
from collections.abc import Sequence
from dataclasses import replace

import pytest

from mail.network.outbound_http import (
    PRIVATE_HOST_TEXT,
    HttpRequestFailed,
    HttpTarget,
    NetworkPolicy,
    is_private_address,
    post_and_return_status,
)
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock, deliver_to
from tests.support.case_loop import each_case
from tests.support.loop_clock import LoopClock
from tests.support.mail_servers.smtp_and_dns_servers import server_tls_context, trusting_tls_context
from tests.support.servers.webhook_receiver import (
    ReceivedRequest,
    WebhookReceiver,
    create_webhook,
    delivery_states,
    load_webhook_log,
    make_webhook_worker,
    post_until_idle,
    receiver,
    run_webhook_receiver,
)
from tests.support.time_limits import HANG_SECONDS

__all__ = ["receiver"]

RESPONSE_TIMEOUT = 300.0  # seconds, which pass only on the clock of the test


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
        (
            b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n\r\n",
            "Unexpected status 302: redirects are not followed.",
        ),
        (b"HTTP/1.1 500 No\r\nContent-Length: 11\r\n\r\nhunter2 key", "Unexpected status 500."),
        (b"SSH-2.0-OpenSSH\r\n", "The response is not HTTP."),
        (b"", "The response is truncated."),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 9000, "The end of the response is missing."),
        (b"HTTP/1.1 100 Continue\r\n\r\n", "The response is truncated."),
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
    assert entry["error"] == error
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
    async with asyncio.timeout(HANG_SECONDS):
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
        worker = make_webhook_worker(ada.environment, timeout_seconds=RESPONSE_TIMEOUT)
        for n in range(5):
            await deliver_to(ada, f"No. {n}")
        loop_clock = LoopClock()
        pump_task = asyncio.create_task(post_until_idle(worker))
        await receiver.wait_for_requests(5)
        await slow_receiver.wait_for_requests(1)
        assert slow_receiver.open_requests == 1
        loop_clock.advance(RESPONSE_TIMEOUT)
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
        assert entry["error"] == "The server did not respond within 300 seconds."


async def test_concurrent_requests_to_a_receiver_are_one_per_account(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver
) -> None:
    both_accounts = asyncio.Barrier(2)

    async def answer(_got: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        await both_accounts.wait()
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
        assert entry["error"] == "The host is in a private network: use a public address."
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
        assert await post_and_return_status(target, {}, b"{}", policy) == 200
        with pytest.raises(HttpRequestFailed, match="TLS"):
            await post_and_return_status(
                replace(target, host="other.example.com"), {}, b"{}", policy
            )
        strict_policy = replace(policy, trusted_context=ssl.create_default_context())
        with pytest.raises(HttpRequestFailed, match="TLS"):
            await post_and_return_status(target, {}, b"{}", strict_policy)
        with pytest.raises(HttpRequestFailed, match=PRIVATE_HOST_TEXT):
            await post_and_return_status(target, {}, b"{}", replace(policy, allows_private=False))


def test_private_addresses_are_detected() -> None:
    cases: list[tuple[str, bool]] = [
        ("127.0.0.1", True), ("10.0.0.1", True), ("172.31.255.255", True),
        ("0.0.0.0", True),  # noqa: S104 - not an address to listen on
        ("192.168.1.1", True), ("169.254.169.254", True), ("100.64.0.1", True),
        ("224.0.0.1", True), ("255.255.255.255", True), ("240.0.0.1", True), ("192.0.0.1", True),
        ("::", True), ("::1", True), ("::ffff:127.0.0.1", True), ("::ffff:8.8.8.8", False),
        ("::127.0.0.1", True), ("fe80::1%eth0", True), ("fc00::1", True), ("ff02::1", True),
        ("64:ff9b::10.0.0.1", True), ("64:ff9b::8.8.8.8", False), ("2002:7f00:1::", True),
        ("64:ff9b:1::1", True), ("2001:db8::1", True), ("2001:0:7f00:1::", True),
        ("8.8.8.8", False), ("2606:4700::1111", False),
    ]  # fmt: skip
    for case in each_case(cases):
        with case as (address, is_private):
            assert is_private_address(address) is is_private
