"""Webhooks whose receivers are slow, wrong, hostile or gone, and workers that die."""

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
from resolvers.notifications.webhook_feed import create_deliveries
from resolvers.notifications.webhook_worker import FAILURES_BEFORE_PAUSE, MAX_ATTEMPTS
from tests.conftest import Client, Clock, receive
from tests.support.mail_servers.smtp_and_dns_servers import server_tls, trust
from tests.support.servers.webhook_receiver import (
    Got,
    Receiver,
    log_of,
    made,
    pump,
    receiving,
    worker_of,
)
from tests.support.servers.webhook_receiver import inward as let_inward
from tests.support.stores.other_processes import taken_for_dead

FAILED = b"HTTP/1.1 503 Later\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
async def receiver(world: Environment) -> AsyncIterator[Receiver]:
    let_inward(world)
    async with receiving() as one:
        yield one


async def states(client: Client, key: str) -> list[str]:
    """From the first to the last."""
    nodes = (await log_of(client, key))["deliveries"]["nodes"]
    return [node["state"] for node in reversed(nodes)]


async def test_what_fails_is_tried_again_and_keeps_its_place(
    ada: Client, bob: Client, root: Client, receiver: Receiver, clock: Clock
) -> None:
    world, bad = ada.world, [True]

    async def answer(got: Got, writer: asyncio.StreamWriter) -> None:
        hers = got.body["user"]["username"] == "ada"
        writer.write(FAILED if hers and bad else b"HTTP/1.1 204 No\r\n\r\n")

    receiver.answer = answer
    key, _ = await made(root, receiver.url, "message.received")
    for subject in ("One", "Two"):
        await receive(ada, subject)
    await receive(bob, "His")
    worker = worker_of(world)
    await pump(worker)
    assert sorted(got.body["user"]["username"] for got in receiver.got) == ["ada", "bob"]
    assert await states(root, key) == ["WAITING", "WAITING", "DONE"]
    await pump(worker)
    assert len(receiver.got) == 2  # not before it is time
    bad.clear()
    clock.tick(seconds=7)
    await pump(worker)
    hers = [got for got in receiver.got if got.body["user"]["username"] == "ada"]
    assert [got.body["objects"][0]["uid"] for got in hers] == [1, 1, 2]
    assert hers[0].body == hers[1].body
    log = await log_of(root, key)
    assert log["failures"] == 0
    assert {(n["state"], n["error"]) for n in log["deliveries"]["nodes"]} == {("DONE", None)}


async def test_what_never_goes_is_given_up_and_what_is_behind_it_goes_on(
    ada: Client, root: Client, receiver: Receiver, clock: Clock
) -> None:
    receiver.answer = FAILED
    key, _ = await made(root, receiver.url, "message.received")
    await receive(ada, "Poison")
    worker = worker_of(ada.world)
    for _ in range(MAX_ATTEMPTS):
        await pump(worker)
        clock.tick(hours=1)
    clock.tick(hours=20)
    await receive(ada, "Good")
    await pump(worker)
    receiver.answer = b"HTTP/1.1 200 OK\r\n\r\n"
    clock.tick(hours=5)
    await pump(worker)
    assert await states(root, key) == ["DEAD", "DONE"]
    assert receiver.got[-1].body["objects"][0]["uid"] == 2


async def test_one_that_fails_for_all_rests_and_is_tried_by_one(
    ada: Client, bob: Client, root: Client, receiver: Receiver, clock: Clock
) -> None:
    receiver.answer = FAILED
    key, _ = await made(root, receiver.url, "message.received")
    worker = worker_of(ada.world)
    for _ in range(FAILURES_BEFORE_PAUSE):
        await receive(ada)
        await pump(worker)
        clock.tick(minutes=30)
    tried = len(receiver.got)
    assert (await log_of(root, key))["failures"] == tried == FAILURES_BEFORE_PAUSE
    await receive(bob)
    await pump(worker)
    assert len(receiver.got) == tried + 1  # of two lanes that were due
    await pump(worker)
    assert len(receiver.got) == tried + 1  # it rests
    receiver.answer = b"HTTP/1.1 200 OK\r\n\r\n"
    clock.tick(hours=2)
    await pump(worker)
    assert set(await states(root, key)) == {"DONE"}


async def test_one_that_is_gone_is_switched_off(
    ada: Client, root: Client, receiver: Receiver, clock: Clock
) -> None:
    receiver.answer = b"HTTP/1.1 410 Gone\r\n\r\n"
    key, _ = await made(root, receiver.url, "message.received")
    await receive(ada)
    worker = worker_of(ada.world)
    await pump(worker)
    clock.tick(hours=1)
    await receive(ada, "Two")
    await pump(worker)
    assert len(receiver.got) == 1
    assert (await log_of(root, key))["active"] is False


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
async def test_answers_that_are_none(
    ada: Client, root: Client, receiver: Receiver, answer: bytes, error: str
) -> None:
    receiver.answer = answer
    key, secret = await made(root, receiver.url, "message.received")
    await receive(ada)
    await pump(worker_of(ada.world))
    log = await log_of(root, key)
    (entry,) = log["deliveries"]["nodes"]
    assert (entry["state"], entry["attempt"]) == ("WAITING", 1)
    assert str(entry["error"]).startswith(error)
    assert "hunter2" not in str(log)
    assert secret not in str(log)


async def test_an_answer_without_end_is_taken_by_its_head(
    ada: Client, root: Client, receiver: Receiver
) -> None:
    sent = [0]

    async def answer(_got: Got, writer: asyncio.StreamWriter) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n")
        while True:
            writer.write(b"x" * 65536)
            await writer.drain()
            sent[0] += 65536

    receiver.answer = answer
    key, _ = await made(root, receiver.url, "message.received")
    await receive(ada)
    async with asyncio.timeout(5):
        await pump(worker_of(ada.world))
    assert await states(root, key) == ["DONE"]
    assert sent[0] < 64 << 20


async def drip(_got: Got, writer: asyncio.StreamWriter) -> None:
    """Answer a byte at a time, for ever."""
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"X")
        await writer.drain()
        await asyncio.sleep(0.02)


async def test_a_slow_one_holds_nobody_up(ada: Client, root: Client, receiver: Receiver) -> None:
    async with receiving() as slow:
        slow.answer = drip
        key, _ = await made(root, slow.url, "message.received")
        await made(root, receiver.url, "message.received")
        worker = worker_of(ada.world, timeout_seconds=4.0)
        for n in range(5):
            await receive(ada, f"No. {n}")
        begun = asyncio.get_running_loop().time()
        run = asyncio.create_task(pump(worker))
        await receiver.wait(5)
        assert asyncio.get_running_loop().time() - begun < 3.5
        await run
        assert [got.body["objects"][0]["uid"] for got in receiver.got] == [1, 2, 3, 4, 5]
        assert len(slow.got) == 1
        entry = (await log_of(root, key))["deliveries"]["nodes"][-1]
        assert entry["error"] == "no answer within 4 seconds"


async def test_posts_to_one_are_few_at_once(
    ada: Client, bob: Client, root: Client, receiver: Receiver
) -> None:
    async def answer(_got: Got, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.1)
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n")

    receiver.answer = answer
    await made(root, receiver.url, "message.received")
    for n in range(2):
        await receive(ada, f"Hers {n}")
        await receive(bob, f"His {n}")
    await pump(worker_of(ada.world))
    assert (receiver.most, len(receiver.got)) == (2, 4)  # as many as there are accounts
    for name in ("ada", "bob"):
        theirs = [g for g in receiver.got if g.body["user"]["username"] == name]
        assert [g.body["objects"][0]["uid"] for g in theirs] == [1, 2]


class Crash(BaseException):
    """The process ends here."""


async def test_a_crash_between_the_post_and_its_note_loses_nothing(
    ada: Client, root: Client, receiver: Receiver
) -> None:
    world = ada.world
    key, _ = await made(root, receiver.url, "message.received")
    await receive(ada, "One")

    def fault(place: str) -> None:
        if place == "posted":
            raise Crash

    dying = worker_of(replace(world, reach_fault_point=fault))
    let_inward(dying.environment)
    with contextlib.suppress(Crash):
        await pump(dying)
    assert len(receiver.got) == 1
    assert await states(root, key) == ["WAITING"]
    heir = worker_of(world)
    await pump(heir)
    assert len(receiver.got) == 1  # the lease is the dead one's
    await taken_for_dead(world)
    await pump(heir)
    assert [got.body["id"] for got in receiver.got] == [receiver.got[0].body["id"]] * 2
    assert await states(root, key) == ["DONE"]


async def test_a_crash_before_the_journal_is_read_loses_nothing(
    ada: Client, root: Client, receiver: Receiver
) -> None:
    await made(root, receiver.url, "message.received")
    for n in range(3):
        await receive(ada, f"No. {n}")  # and nobody works
    run = asyncio.create_task(webhook_worker.run_worker(ada.world, delivery_body))
    async with asyncio.timeout(5):
        await receiver.wait(3)
        await receive(ada, "Live")
        await receiver.wait(4)
    run.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await run
    assert [got.body["objects"][0]["uid"] for got in receiver.got] == [1, 2, 3, 4]


async def test_a_worker_without_webhooks_asks_nothing_and_hears_of_the_first(
    ada: Client, root: Client, receiver: Receiver, statements: list[str]
) -> None:
    run = asyncio.create_task(webhook_worker.run_worker(ada.world, delivery_body))
    async with asyncio.timeout(30):  # until the first look is complete
        seen = -1
        while not statements or len(statements) > seen:
            seen = len(statements)
            await asyncio.sleep(0.3)
    del statements[:]
    await receive(ada, "Unheard")
    await asyncio.sleep(0.1)
    assert not any("webhook" in sent for sent in statements)
    await made(root, receiver.url, "message.received", user={"username": "ada"})
    await receive(ada, "Heard")
    async with asyncio.timeout(5):
        await receiver.wait(1)
    run.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await run


async def test_several_workers_post_everything_once_and_in_order(
    ada: Client, bob: Client, root: Client, receiver: Receiver
) -> None:
    await made(root, receiver.url, "message.received")
    workers = [worker_of(ada.world) for _ in range(4)]
    for n in range(10):
        await receive(ada, f"Hers {n}")
        await receive(bob, f"His {n}")
        await asyncio.gather(*(pump(worker) for worker in workers))
    assert len(receiver.got) == 20
    for name in ("ada", "bob"):
        theirs = [g for g in receiver.got if g.body["user"]["username"] == name]
        assert [g.body["objects"][0]["uid"] for g in theirs] == list(range(1, 11))


async def test_a_worker_that_lost_its_lease_writes_nothing(
    ada: Client, root: Client, receiver: Receiver
) -> None:
    world, late = ada.world, asyncio.Event()

    async def answer(_got: Got, writer: asyncio.StreamWriter) -> None:
        if len(receiver.got) == 1:
            await late.wait()
        writer.write(b"HTTP/1.1 200 OK\r\n\r\n" if len(receiver.got) == 2 else FAILED)

    receiver.answer = answer
    key, _ = await made(root, receiver.url, "message.received")
    await receive(ada)
    slow = asyncio.create_task(pump(worker_of(world)))
    await receiver.wait(1)
    await taken_for_dead(world)
    await pump(worker_of(world))
    late.set()
    await slow
    (entry,) = (await log_of(root, key))["deliveries"]["nodes"]
    assert (entry["state"], entry["attempt"], entry["status"]) == ("DONE", 1, 200)


async def test_what_is_deleted_waits_no_more(ada: Client, root: Client, receiver: Receiver) -> None:
    key, _ = await made(root, receiver.url, "message.received")
    await receive(ada)
    await create_deliveries(ada.world)
    deletion = "mutation ($id: ID!) { webhookDelete(input: {ids: [$id]}) { deletedIds } }"
    assert (await root(deletion, id=key))["webhookDelete"]["deletedIds"] == [key]
    for table in (WebhookDelivery, WebhookLane):
        ((many,),) = await ada.world.database.read(select(func.count()).select_from(table))
        assert many == 0
    await pump(worker_of(ada.world))
    assert receiver.got == []


async def test_nothing_is_posted_inward(
    ada: Client, root: Client, world: Environment, caplog: pytest.LogCaptureFixture
) -> None:
    async with receiving() as hidden:
        found: list[tuple[str, int]] = []

        async def resolve(host: str, port: int) -> Sequence[str]:
            found.append((host, port))
            return ["127.0.0.1", "::ffff:127.0.0.1"]

        url = f"http://hooks.example.com:{hidden.port}/?token=s3cret"
        key, secret = await made(root, url, "message.received")
        await receive(ada)
        with caplog.at_level(logging.DEBUG):
            await pump(worker_of(world, resolve=resolve))
        assert found == [("hooks.example.com", hidden.port)]
        assert hidden.got == []
        (entry,) = (await log_of(root, key))["deliveries"]["nodes"]
        assert entry["error"] == "the host is inside"
        told = " ".join(str(vars(record)) for record in caplog.records)
        assert "s3cret" not in told
        assert secret not in told


async def test_the_address_that_was_judged_is_the_one_that_is_called(
    ada: Client, root: Client, receiver: Receiver, world: Environment
) -> None:
    answers = [["127.0.0.1"], ["127.0.0.9"]]

    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return answers.pop(0)

    url = f"http://hooks.example.com:{receiver.port}/x"
    await made(root, url, "message.received")
    await receive(ada)
    await pump(worker_of(world, resolve=resolve))
    (got,) = receiver.got
    assert got.headers["host"] == f"hooks.example.com:{receiver.port}"
    assert len(answers) == 1  # asked once


async def test_a_certificate_is_checked_by_the_name() -> None:
    async def resolve(_host: str, _port: int) -> Sequence[str]:
        return ["127.0.0.1"]

    async with receiving(server_tls()) as one:
        gate = NetworkPolicy(allows_private=True, trusted_context=trust(), resolve=resolve)
        right = HttpTarget(True, "mx1.example.net", one.port, "/")
        assert await post(right, {}, b"{}", gate) == 200
        with pytest.raises(HttpRequestFailed, match="TLS"):
            await post(replace(right, host="other.example.com"), {}, b"{}", gate)
        strict = replace(gate, trusted_context=ssl.create_default_context())
        with pytest.raises(HttpRequestFailed, match="TLS"):
            await post(right, {}, b"{}", strict)
        with pytest.raises(HttpRequestFailed, match="inside"):
            await post(right, {}, b"{}", replace(gate, allows_private=False))


@pytest.mark.parametrize(
    ("address", "inside"),
    [
        ("127.0.0.1", True), ("10.0.0.1", True), ("172.31.255.255", True),
        ("0.0.0.0", True),  # noqa: S104 - it is no place to listen at
        ("192.168.1.1", True), ("169.254.169.254", True), ("100.64.0.1", True),
        ("224.0.0.1", True), ("255.255.255.255", True), ("240.0.0.1", True), ("192.0.0.1", True),
        ("::", True), ("::1", True), ("::ffff:127.0.0.1", True), ("::ffff:8.8.8.8", False),
        ("::127.0.0.1", True), ("fe80::1%eth0", True), ("fc00::1", True), ("ff02::1", True),
        ("64:ff9b::10.0.0.1", True), ("64:ff9b::8.8.8.8", False), ("2002:7f00:1::", True),
        ("64:ff9b:1::1", True), ("2001:db8::1", True), ("2001:0:7f00:1::", True),
        ("8.8.8.8", False), ("2606:4700::1111", False),
    ],
)  # fmt: skip
def test_what_is_inside(address: str, inside: bool) -> None:
    assert is_private_address(address) is inside


async def test_a_wait_grows_and_has_chance_in_it() -> None:
    for attempts in range(1, MAX_ATTEMPTS + 3):
        least, most = (
            webhook_worker.retry_delay(attempts, 0.0),
            webhook_worker.retry_delay(attempts, 1.0),
        )
        assert timedelta(0) < least < most <= timedelta(hours=5)
    assert webhook_worker.retry_delay(5, 0.5) > 10 * webhook_worker.retry_delay(1, 0.5)


async def test_reading_the_journal_costs_the_same_for_many(
    ada: Client, bob: Client, root: Client, receiver: Receiver, statements: list[str]
) -> None:
    await made(root, receiver.url, "message.received")
    await create_deliveries(ada.world)
    costs = []
    for many in (1, 20):
        for n in range(many):
            await receive(ada, f"{many} {n}")
            await receive(bob, f"{many} {n}")
        del statements[:]
        await create_deliveries(ada.world)
        costs.append(len(statements))
    assert costs[0] == costs[1]
    rows = await ada.world.database.read(select(col(WebhookDelivery.id)))
    assert len(rows) == 42
