"""The push worker: retries, slow and failing services, crashes and leases."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from graph.types import global_ids
from mail.network.outbound_http import NetworkPolicy
from models.runtime.environment import Environment
from resolvers.notifications import push_events, push_worker
from resolvers.notifications.push_worker import MAX_PUSHES_PER_WINDOW
from tests.conftest import GraphQLClient, ManualClock
from tests.support.mail_servers.dns_zone_server import asking, zone
from tests.support.mail_servers.smtp_and_dns_servers import server_tls, trust
from tests.support.operations.push_receivers import (
    Browser,
    channel,
    come,
    http,
    loose,
    made,
    pump,
    texts,
    worker_of,
)
from tests.support.servers.live_server import until
from tests.support.servers.webhook_receiver import OK, Got, Receiver, receiving
from tests.support.stores.other_processes import taken_for_dead

UNAVAILABLE_RESPONSE = b"HTTP/1.1 503 Later\r\nContent-Length: 11\r\n\r\nhunter2 key"
ERROR_RESPONSE = b"HTTP/1.1 %d Gone\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
async def receiver(environment: Environment) -> AsyncIterator[Receiver]:
    async with receiving() as http_receiver:
        loose(environment, pushover_url=f"http://127.0.0.1:{http_receiver.port}/1/messages.json")
        yield http_receiver


async def test_retry_includes_messages_received_meanwhile(
    ada: GraphQLClient, receiver: Receiver, clock: ManualClock
) -> None:
    receiver.answer = UNAVAILABLE_RESPONSE
    await made(ada, **http(receiver, token="tk_SECRET"))  # noqa: S106
    worker = worker_of(ada.environment)
    await come(ada, "One")
    await pump(worker)
    await pump(worker)
    assert texts(receiver) == ["One"]  # the retry is not due
    shown_channel = await channel(ada)
    assert (shown_channel["active"], shown_channel["lastError"], shown_channel["lastPushAt"]) == (
        True,
        "status 503",
        None,
    )
    for n in range(3):
        await come(ada, f"More {n}")
    await pump(worker)
    assert len(receiver.got) == 1  # a new message does not make the retry earlier
    receiver.answer = OK
    clock.tick(seconds=7)
    await pump(worker)
    assert texts(receiver)[1:] == ["4 new messages"]
    assert (await channel(ada))["lastError"] is None


async def test_message_older_than_a_day_is_not_pushed(
    ada: GraphQLClient, receiver: Receiver, clock: ManualClock
) -> None:
    receiver.answer = UNAVAILABLE_RESPONSE
    await made(ada, **http(receiver))
    worker = worker_of(ada.environment)
    await come(ada, "Old")
    await pump(worker)
    receiver.answer = OK
    clock.tick(hours=25)
    await come(ada, "New")
    await pump(worker)
    assert texts(receiver) == ["Old", "New"]


@pytest.mark.parametrize(
    ("kind", "status", "active"),
    [
        ("WEB_PUSH", 404, False), ("WEB_PUSH", 410, False), ("WEB_PUSH", 403, True),
        ("HTTP", 410, False), ("HTTP", 404, True), ("PUSHOVER", 400, False),
        ("PUSHOVER", 429, True),
    ],
)  # fmt: skip
async def test_status_decides_whether_channel_is_deactivated(
    ada: GraphQLClient, receiver: Receiver, kind: str, status: int, active: bool
) -> None:
    async with receiving(server_tls()) as web_push_receiver:
        receiver.answer = web_push_receiver.answer = ERROR_RESPONSE % status
        fields = {
            "WEB_PUSH": {"endpoint": Browser(web_push_receiver.port).subscription},
            "HTTP": http(receiver),
            "PUSHOVER": {"key": "k", "token": "t"},
        }[kind]
        await made(ada, **{"kind": kind, **fields})
        start = (await ada("{ viewer { user { cursor } } }"))["viewer"]["user"]["cursor"]
        await come(ada)
        await pump(worker_of(ada.environment, trusted_context=trust()))
        assert len(receiver.got) + len(web_push_receiver.got) == 1
    shown_channel = await channel(ada)
    assert (shown_channel["active"], shown_channel["lastError"]) == (active, f"status {status}")
    changes_query = (
        "query ($c: Cursor!) { changes(after: $c, kinds: [USER_CHANGED]) { events { kind } } }"
    )
    events = (await ada(changes_query, c=start))["changes"]["events"]
    assert len(events) == (not active)


async def test_slow_service_does_not_delay_other_users(
    ada: GraphQLClient, bob: GraphQLClient, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with receiving() as slow_receiver:

        async def never_answer(_got: Got, _writer: asyncio.StreamWriter) -> None:
            await asyncio.Event().wait()

        slow_receiver.answer = never_answer
        await made(ada, **http(slow_receiver, token="tk_SECRET"))  # noqa: S106
        await made(bob, **http(receiver))
        for client in (ada, bob):
            await come(client, "Hello")
        task = asyncio.create_task(pump(worker_of(ada.environment, timeout_seconds=1.0)))
        async with asyncio.timeout(10):
            await slow_receiver.wait(1)
            await receiver.wait(1)
            await come(ada, "A delivery is not held up")
        assert not task.done()
        await task
        for server in (slow_receiver,):
            assert len(server.got) == 1
    assert (await channel(ada))["lastError"] == "no answer within 1 seconds"
    logged = caplog.text + str([vars(record) for record in caplog.records])
    assert "push failed" in logged
    assert "SECRET" not in logged
    assert "/topic" not in logged
    assert "Hello" not in logged


class PushWorkerCrash(BaseException):
    """A simulated end of the process."""


async def test_crash_after_push_repeats_the_push(ada: GraphQLClient, receiver: Receiver) -> None:
    environment = ada.environment
    await made(ada, **http(receiver))
    await come(ada, "Once")

    def crash_after_push(fault_point: str) -> None:
        if fault_point == "pushed":
            raise PushWorkerCrash

    crashing_worker = worker_of(replace(environment, reach_fault_point=crash_after_push))
    object.__setattr__(crashing_worker.environment, "options", environment.options)
    await push_worker.start_pushes(crashing_worker)
    (serving,) = crashing_worker.served.values()
    with contextlib.suppress(PushWorkerCrash):
        await serving.task
    assert texts(receiver) == ["Once"]
    await pump(worker_of(environment))
    assert len(receiver.got) == 1  # the crashed worker still has the lease
    await taken_for_dead(environment)
    await pump(worker_of(environment))
    await pump(worker_of(environment))
    assert texts(receiver) == ["Once", "Once"]


async def test_two_workers_push_each_message_once(
    ada: GraphQLClient, bob: GraphQLClient, receiver: Receiver
) -> None:
    for client in (ada, bob):
        await made(client, **http(receiver, title=client.user.username))
        for n in range(3):
            await come(client, f"No. {n}")
    await asyncio.gather(*(pump(worker_of(ada.environment)) for _ in range(2)))
    for client in (ada, bob):
        requests = [
            request for request in receiver.got if request.headers["title"] == client.user.username
        ]
        assert [request.raw for request in requests] == [b"No. 0", b"No. 1", b"No. 2"]


async def test_channel_changed_during_push_is_not_deactivated(
    ada: GraphQLClient, receiver: Receiver
) -> None:
    changed = asyncio.Event()

    async def answer_gone_after_change(_got: Got, writer: asyncio.StreamWriter) -> None:
        await changed.wait()
        writer.write(ERROR_RESPONSE % 410)

    receiver.answer = answer_gone_after_change
    await made(ada, **http(receiver))
    await come(ada, "Hello")
    task = asyncio.create_task(pump(worker_of(ada.environment)))
    await receiver.wait(1)
    async with receiving() as other_receiver:
        await made(ada, **http(other_receiver))
        changed.set()
        await task
        await pump(worker_of(ada.environment))
        assert (await channel(ada))["active"] is True
        assert texts(other_receiver) == ["Hello"]


async def test_suspended_user_gets_no_push(
    ada: GraphQLClient, root: GraphQLClient, receiver: Receiver
) -> None:
    await made(ada, **http(receiver))
    suspend = """mutation ($on: Boolean!) { userUpdate(input: {users: {usernames: ["ada"]},
      set: {suspended: $on}}) { errors { message } } }"""
    assert (await root(suspend, on=True))["userUpdate"]["errors"] == []
    await come(ada, "Hello")
    await pump(worker_of(ada.environment))
    assert receiver.got == []
    await root(suspend, on=False)
    await pump(worker_of(ada.environment))
    assert texts(receiver) == ["Hello"]


async def test_private_addresses_are_checked_when_contacted(
    ada: GraphQLClient, receiver: Receiver
) -> None:
    environment = ada.environment
    await made(ada, **http(receiver))
    loose(environment, push_private=False)
    await come(ada, "Hello")
    await pump(worker_of(environment))
    assert receiver.got == []
    assert (await channel(ada))["lastError"] == "that is inside: use a public address"
    await made(ada, kind="HTTP", endpoint="http://push.example.net/topic")

    async def resolve_to_loopback(_host: str, _port: int) -> list[str]:
        return ["127.0.0.1"]

    await come(ada, "Again")
    await pump(worker_of(environment, resolve=resolve_to_loopback))
    assert receiver.got == []
    assert (await channel(ada))["lastError"] == "the host is inside"


@pytest.mark.parametrize("private", [True, False])
async def test_push_hosts_are_resolved_by_configured_name_server(
    ada: GraphQLClient, receiver: Receiver, *, private: bool
) -> None:
    environment = ada.environment
    async with asking(zone({}, A={"push.example.net": "127.0.0.1"})) as resolver_address:
        loose(environment, push_private=private, dns_resolver=resolver_address)
        await made(ada, kind="HTTP", endpoint=f"http://push.example.net:{receiver.port}/topic")
        await come(ada, "Hello")
        worker = asyncio.create_task(push_worker.run_worker(environment, global_ids.encode))
        try:
            async with asyncio.timeout(60):
                if private:
                    await receiver.wait(1)
                else:
                    while (await channel(ada))["lastError"] is None:  # noqa: ASYNC110 - no event
                        await asyncio.sleep(0.1)
        finally:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
    assert texts(receiver) == (["Hello"] if private else [])
    assert (await channel(ada))["lastError"] == (None if private else "the host is inside")


async def test_worker_pushes_after_wakeup(
    ada: GraphQLClient, bob: GraphQLClient, receiver: Receiver, statements: list[str]
) -> None:
    environment = ada.environment
    worker = asyncio.create_task(
        push_worker.run_worker(environment, global_ids.encode, NetworkPolicy())
    )
    try:
        await made(ada, **http(receiver))
        await until(lambda: any("FROM push_channels" in statement for statement in statements))
        await come(ada, "One")
        async with asyncio.timeout(10):
            await receiver.wait(1)
        await come(bob, "His")
        await come(ada, "Two")
        async with asyncio.timeout(10):
            await receiver.wait(2)
        assert texts(receiver) == ["One", "Two"]
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


async def test_journal_is_read_with_constant_statements(
    ada: GraphQLClient, bob: GraphQLClient, receiver: Receiver, statements: list[str]
) -> None:
    async def count_statements(*clients: GraphQLClient) -> int:
        for client in clients:
            await come(client, "Junk mail", into="Junk")
        del statements[:]
        await pump(worker_of(ada.environment))
        return len(statements)

    for client in (ada, bob):
        await made(client, **http(receiver))
        await made(client, key="k", token="t")  # noqa: S106
    await pump(worker_of(ada.environment))
    assert await count_statements(ada) == await count_statements(ada, bob)
    assert receiver.got == []


async def test_many_messages_are_few_pushes(
    ada: GraphQLClient, receiver: Receiver, clock: ManualClock
) -> None:
    await made(ada, **http(receiver))
    worker = worker_of(ada.environment)
    for n in range(60):
        await come(ada, f"No. {n}")
        await pump(worker)
        clock.tick(seconds=1)
    clock.tick(seconds=60)
    await pump(worker)
    assert len(receiver.got) <= 2 * MAX_PUSHES_PER_WINDOW
    singles = [text for text in texts(receiver) if text.startswith("No.")]
    counts = [int(text.split()[0]) for text in texts(receiver) if text not in singles]
    assert len(singles) + sum(counts) == 60


async def test_more_changes_than_batch_size_are_pushed_in_rounds(
    ada: GraphQLClient, bob: GraphQLClient, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_events, "MAX_CHANGES", 3)
    for client in (ada, bob):
        await made(client, **http(receiver, title=client.user.username))
        for n in range(4):
            await come(client, f"Junk {n}", into="Junk")
        for n in range(3):
            await come(client, f"No. {n}")
    worker = worker_of(ada.environment)
    async with asyncio.timeout(30):
        await pump(worker)
    for client in (ada, bob):
        requests = [
            request for request in receiver.got if request.headers["title"] == client.user.username
        ]
        assert [request.raw for request in requests] == [b"No. 0", b"No. 1", b"No. 2"]
