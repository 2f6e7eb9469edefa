"""Pushes whose services are slow, wrong or gone, and workers that die."""

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
from tests.conftest import Client, Clock
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

LATER = b"HTTP/1.1 503 Later\r\nContent-Length: 11\r\n\r\nhunter2 key"
GONE = b"HTTP/1.1 %d Gone\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
async def receiver(world: Environment) -> AsyncIterator[Receiver]:
    async with receiving() as one:
        loose(world, pushover_url=f"http://127.0.0.1:{one.port}/1/messages.json")
        yield one


async def test_what_fails_is_tried_again_with_all_that_came_meanwhile(
    ada: Client, receiver: Receiver, clock: Clock
) -> None:
    receiver.answer = LATER
    await made(ada, **http(receiver, token="tk_SECRET"))  # noqa: S106
    worker = worker_of(ada.world)
    await come(ada, "One")
    await pump(worker)
    await pump(worker)
    assert texts(receiver) == ["One"]  # not before it is time
    one = await channel(ada)
    assert (one["active"], one["lastError"], one["lastPushAt"]) == (True, "status 503", None)
    for n in range(3):
        await come(ada, f"More {n}")
    await pump(worker)
    assert len(receiver.got) == 1  # what comes does not make it sooner
    receiver.answer = OK
    clock.tick(seconds=7)
    await pump(worker)
    assert texts(receiver)[1:] == ["4 new messages"]
    assert (await channel(ada))["lastError"] is None


async def test_what_is_a_day_old_is_told_no_more(
    ada: Client, receiver: Receiver, clock: Clock
) -> None:
    receiver.answer = LATER
    await made(ada, **http(receiver))
    worker = worker_of(ada.world)
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
async def test_a_service_that_says_it_is_gone_switches_off(
    ada: Client, receiver: Receiver, kind: str, status: int, active: bool
) -> None:
    async with receiving(server_tls()) as browsers:
        receiver.answer = browsers.answer = GONE % status
        given = {
            "WEB_PUSH": {"endpoint": Browser(browsers.port).subscription},
            "HTTP": http(receiver),
            "PUSHOVER": {"key": "k", "token": "t"},
        }[kind]
        await made(ada, **{"kind": kind, **given})
        before = (await ada("{ viewer { user { cursor } } }"))["viewer"]["user"]["cursor"]
        await come(ada)
        await pump(worker_of(ada.world, trusted_context=trust()))
        assert len(receiver.got) + len(browsers.got) == 1
    one = await channel(ada)
    assert (one["active"], one["lastError"]) == (active, f"status {status}")
    asked = "query ($c: Cursor!) { changes(after: $c, kinds: [USER_CHANGED]) { events { kind } } }"
    events = (await ada(asked, c=before))["changes"]["events"]
    assert len(events) == (not active)


async def test_a_slow_one_holds_nobody_up(
    ada: Client, bob: Client, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    async with receiving() as slow:

        async def never(_got: Got, _writer: asyncio.StreamWriter) -> None:
            await asyncio.Event().wait()

        slow.answer = never
        await made(ada, **http(slow, token="tk_SECRET"))  # noqa: S106
        await made(bob, **http(receiver))
        for client in (ada, bob):
            await come(client, "Hello")
        task = asyncio.create_task(pump(worker_of(ada.world, timeout_seconds=1.0)))
        async with asyncio.timeout(10):
            await slow.wait(1)
            await receiver.wait(1)
            await come(ada, "A delivery is not held up")
        assert not task.done()
        await task
        for server in (slow,):
            assert len(server.got) == 1
    assert (await channel(ada))["lastError"] == "no answer within 1 seconds"
    told = caplog.text + str([vars(record) for record in caplog.records])
    assert "push failed" in told
    assert "SECRET" not in told
    assert "/topic" not in told
    assert "Hello" not in told


class Crash(BaseException):
    """The process ends here."""


async def test_a_crash_between_the_push_and_its_note_loses_nothing(
    ada: Client, receiver: Receiver
) -> None:
    world = ada.world
    await made(ada, **http(receiver))
    await come(ada, "Once")

    def fault(place: str) -> None:
        if place == "pushed":
            raise Crash

    dying = worker_of(replace(world, reach_fault_point=fault))
    object.__setattr__(dying.environment, "options", world.options)
    await push_worker.start_pushes(dying)
    (serving,) = dying.served.values()
    with contextlib.suppress(Crash):
        await serving.task
    assert texts(receiver) == ["Once"]
    await pump(worker_of(world))
    assert len(receiver.got) == 1  # it is held still
    await taken_for_dead(world)
    await pump(worker_of(world))
    await pump(worker_of(world))
    assert texts(receiver) == ["Once", "Once"]


async def test_two_workers_tell_each_thing_once(
    ada: Client, bob: Client, receiver: Receiver
) -> None:
    for client in (ada, bob):
        await made(client, **http(receiver, title=client.user.username))
        for n in range(3):
            await come(client, f"No. {n}")
    await asyncio.gather(*(pump(worker_of(ada.world)) for _ in range(2)))
    for client in (ada, bob):
        mine = [g for g in receiver.got if g.headers["title"] == client.user.username]
        assert [got.raw for got in mine] == [b"No. 0", b"No. 1", b"No. 2"]


async def test_what_is_changed_while_it_is_posted_is_not_switched_off(
    ada: Client, receiver: Receiver
) -> None:
    changed = asyncio.Event()

    async def gone(_got: Got, writer: asyncio.StreamWriter) -> None:
        await changed.wait()
        writer.write(GONE % 410)

    receiver.answer = gone
    await made(ada, **http(receiver))
    await come(ada, "Hello")
    task = asyncio.create_task(pump(worker_of(ada.world)))
    await receiver.wait(1)
    async with receiving() as other:
        await made(ada, **http(other))
        changed.set()
        await task
        await pump(worker_of(ada.world))
        assert (await channel(ada))["active"] is True
        assert texts(other) == ["Hello"]


async def test_who_may_not_sign_in_is_not_told_either(
    ada: Client, root: Client, receiver: Receiver
) -> None:
    await made(ada, **http(receiver))
    suspend = """mutation ($on: Boolean!) { userUpdate(input: {users: {usernames: ["ada"]},
      set: {suspended: $on}}) { errors { message } } }"""
    assert (await root(suspend, on=True))["userUpdate"]["errors"] == []
    await come(ada, "Hello")
    await pump(worker_of(ada.world))
    assert receiver.got == []
    await root(suspend, on=False)
    await pump(worker_of(ada.world))
    assert texts(receiver) == ["Hello"]


async def test_addresses_inside_are_judged_where_they_are_called(
    ada: Client, receiver: Receiver
) -> None:
    world = ada.world
    await made(ada, **http(receiver))
    loose(world, push_private=False)
    await come(ada, "Hello")
    await pump(worker_of(world))
    assert receiver.got == []
    assert (await channel(ada))["lastError"] == "that is inside: use a public address"
    await made(ada, kind="HTTP", endpoint="http://push.example.net/topic")

    async def rebound(_host: str, _port: int) -> list[str]:
        return ["127.0.0.1"]

    await come(ada, "Again")
    await pump(worker_of(world, resolve=rebound))
    assert receiver.got == []
    assert (await channel(ada))["lastError"] == "the host is inside"


@pytest.mark.parametrize("private", [True, False])
async def test_hosts_of_pushes_are_looked_up_at_the_name_server_of_the_settings(
    ada: Client, receiver: Receiver, *, private: bool
) -> None:
    world = ada.world
    async with asking(zone({}, A={"push.example.net": "127.0.0.1"})) as place:
        loose(world, push_private=private, dns_resolver=place)
        await made(ada, kind="HTTP", endpoint=f"http://push.example.net:{receiver.port}/topic")
        await come(ada, "Hello")
        worker = asyncio.create_task(push_worker.run_worker(world, global_ids.encode))
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


async def test_the_worker_looks_when_a_bell_rings_and_asks_little(
    ada: Client, bob: Client, receiver: Receiver, statements: list[str]
) -> None:
    world = ada.world
    worker = asyncio.create_task(push_worker.run_worker(world, global_ids.encode, NetworkPolicy()))
    try:
        await made(ada, **http(receiver))
        await until(lambda: any("FROM push_channels" in one for one in statements))
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


async def test_looking_costs_the_same_however_many(
    ada: Client, bob: Client, receiver: Receiver, statements: list[str]
) -> None:
    async def cost(*clients: Client) -> int:
        for client in clients:
            await come(client, "Junk mail", into="Junk")
        del statements[:]
        await pump(worker_of(ada.world))
        return len(statements)

    for client in (ada, bob):
        await made(client, **http(receiver))
        await made(client, key="k", token="t")  # noqa: S106
    await pump(worker_of(ada.world))
    assert await cost(ada) == await cost(ada, bob)
    assert receiver.got == []


async def test_a_storm_is_a_few_pushes(ada: Client, receiver: Receiver, clock: Clock) -> None:
    await made(ada, **http(receiver))
    worker = worker_of(ada.world)
    for n in range(60):
        await come(ada, f"No. {n}")
        await pump(worker)
        clock.tick(seconds=1)
    clock.tick(seconds=60)
    await pump(worker)
    assert len(receiver.got) <= 2 * MAX_PUSHES_PER_WINDOW
    singles = [text for text in texts(receiver) if text.startswith("No.")]
    counted = [int(text.split()[0]) for text in texts(receiver) if text not in singles]
    assert len(singles) + sum(counted) == 60


async def test_what_is_too_much_at_once_is_told_in_turns(
    ada: Client, bob: Client, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_events, "MAX_CHANGES", 3)
    for client in (ada, bob):
        await made(client, **http(receiver, title=client.user.username))
        for n in range(4):
            await come(client, f"Junk {n}", into="Junk")
        for n in range(3):
            await come(client, f"No. {n}")
    worker = worker_of(ada.world)
    async with asyncio.timeout(30):
        await pump(worker)
    for client in (ada, bob):
        mine = [g for g in receiver.got if g.headers["title"] == client.user.username]
        assert [got.raw for got in mine] == [b"No. 0", b"No. 1", b"No. 2"]
