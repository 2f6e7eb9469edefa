"""The push worker: retries, slow and failing services, crashes and leases."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import replace

import httpx
import pytest

from graph.types import global_ids
from mail.network.outbound_http import NetworkPolicy
from models.events.event_types import EventType
from models.runtime.environment import Environment
from resolvers.notifications import push_events, push_worker
from resolvers.notifications.push_worker import MAX_PUSHES_PER_WINDOW, MAX_SINGLE_NOTIFICATIONS
from tests.conftest import GraphQLClient, ManualClock, make_client, raw_message
from tests.support.case_loop import each_case
from tests.support.mail_servers.dns_zone_server import make_dns_zone, run_dns_zone
from tests.support.mail_servers.smtp_and_dns_servers import server_tls_context, trusting_tls_context
from tests.support.operations.connector_operations import (
    add_connector,
    dovecot_account,
    rerun_connector,
    run_connector,
    shared_dovecot,
)
from tests.support.operations.push_receivers import (
    PushSubscriber,
    allow_local_pushes,
    create_push_channel,
    deliver_to_mailbox,
    http_channel_input,
    load_push_channel,
    make_push_worker,
    push_until_idle,
    received_texts,
)
from tests.support.servers.dovecot_server import DovecotAccount
from tests.support.servers.live_server import wait_until
from tests.support.servers.webhook_receiver import (
    OK_RESPONSE,
    ReceivedRequest,
    WebhookReceiver,
    run_webhook_receiver,
)
from tests.support.stores.counter_check import load_journal_entries
from tests.support.stores.other_processes import deregister_as_dead
from tests.support.time_limits import HANG_SECONDS

__all__ = ["dovecot_account", "shared_dovecot"]
UNAVAILABLE_RESPONSE = b"HTTP/1.1 503 Later\r\nContent-Length: 11\r\n\r\nhunter2 key"
ERROR_RESPONSE = b"HTTP/1.1 %d Gone\r\nContent-Length: 0\r\n\r\n"


@pytest.fixture
async def receiver(environment: Environment) -> AsyncIterator[WebhookReceiver]:
    async with run_webhook_receiver() as http_receiver:
        allow_local_pushes(
            environment, pushover_url=f"http://127.0.0.1:{http_receiver.port}/1/messages.json"
        )
        yield http_receiver


async def test_retry_includes_messages_received_meanwhile(
    ada: GraphQLClient, receiver: WebhookReceiver, clock: ManualClock
) -> None:
    receiver.response = UNAVAILABLE_RESPONSE
    await create_push_channel(ada, **http_channel_input(receiver, token="tk_SECRET"))  # noqa: S106
    worker = make_push_worker(ada.environment)
    await deliver_to_mailbox(ada, "One")
    await push_until_idle(worker)
    await push_until_idle(worker)
    assert received_texts(receiver) == ["One"]  # the retry is not due
    shown_channel = await load_push_channel(ada)
    assert (shown_channel["active"], shown_channel["lastError"], shown_channel["lastPushAt"]) == (
        True,
        "Unexpected status 503.",
        None,
    )
    for n in range(3):
        await deliver_to_mailbox(ada, f"More {n}")
    await push_until_idle(worker)
    assert len(receiver.requests) == 1  # a new message does not make the retry earlier
    receiver.response = OK_RESPONSE
    clock.tick(seconds=7)
    await push_until_idle(worker)
    assert received_texts(receiver)[1:] == ["4 new messages"]
    assert (await load_push_channel(ada))["lastError"] is None


async def test_each_message_of_a_connector_run_is_pushed(
    ada: GraphQLClient, receiver: WebhookReceiver, dovecot_account: DovecotAccount
) -> None:
    dovecot_account.save_message(raw_message("Before"))
    connector_id = await add_connector(ada, dovecot_account)
    await run_connector(ada.environment, connector_id)
    await create_push_channel(ada, **http_channel_input(receiver))
    subjects = [f"No. {n}" for n in range(MAX_SINGLE_NOTIFICATIONS)]
    for subject in subjects:
        dovecot_account.save_with_date(raw_message(subject), ada.environment.now())
    await rerun_connector(ada.environment, connector_id)
    entries = await load_journal_entries(ada.environment, ada.user.id)
    counts = [len(ids) for kind, ids in entries if kind is EventType.MESSAGE_RECEIVED]
    assert counts == [len(subjects)]  # one entry for all
    await push_until_idle(make_push_worker(ada.environment))
    assert sorted(received_texts(receiver)) == subjects


async def test_message_older_than_a_day_is_not_pushed(
    ada: GraphQLClient, receiver: WebhookReceiver, clock: ManualClock
) -> None:
    receiver.response = UNAVAILABLE_RESPONSE
    await create_push_channel(ada, **http_channel_input(receiver))
    worker = make_push_worker(ada.environment)
    await deliver_to_mailbox(ada, "Old")
    await push_until_idle(worker)
    receiver.response = OK_RESPONSE
    clock.tick(hours=25)
    await deliver_to_mailbox(ada, "New")
    await push_until_idle(worker)
    assert received_texts(receiver) == ["Old", "New"]


async def test_status_decides_whether_channel_is_deactivated(
    environment: Environment, http: httpx.AsyncClient, receiver: WebhookReceiver
) -> None:
    cases: list[tuple[str, int, bool]] = [
        ("WEB_PUSH", 404, False), ("WEB_PUSH", 410, False), ("WEB_PUSH", 403, True),
        ("HTTP", 410, False), ("HTTP", 404, True), ("PUSHOVER", 400, False),
        ("PUSHOVER", 429, True),
    ]  # fmt: skip
    changes_query = (
        "query ($c: Cursor!) { changes(after: $c, types: [USER_UPDATED]) { events { type } } }"
    )
    for number, case in enumerate(each_case(cases)):
        with case as (kind, status, active):
            client = await make_client(environment, http, f"user{number}")
            receiver.requests.clear()
            async with run_webhook_receiver(server_tls_context()) as web_push_receiver:
                receiver.response = web_push_receiver.response = ERROR_RESPONSE % status
                fields = {
                    "WEB_PUSH": {"endpoint": PushSubscriber(web_push_receiver.port).subscription},
                    "HTTP": http_channel_input(receiver),
                    "PUSHOVER": {"key": "k", "token": "t"},
                }[kind]
                await create_push_channel(client, **{"kind": kind, **fields})
                user = (await client("{ viewer { user { cursor } } }"))["viewer"]["user"]
                await deliver_to_mailbox(client)
                await push_until_idle(
                    make_push_worker(environment, trusted_context=trusting_tls_context())
                )
                assert len(receiver.requests) + len(web_push_receiver.requests) == 1
            shown_channel = await load_push_channel(client)
            assert (shown_channel["active"], shown_channel["lastError"]) == (
                active,
                f"Unexpected status {status}.",
            )
            events = (await client(changes_query, c=user["cursor"]))["changes"]["events"]
            assert len(events) == (not active)


async def test_slow_service_does_not_delay_other_users(
    ada: GraphQLClient,
    bob: GraphQLClient,
    receiver: WebhookReceiver,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    async with run_webhook_receiver() as slow_receiver:

        async def never_answer(_got: ReceivedRequest, _writer: asyncio.StreamWriter) -> None:
            await asyncio.Event().wait()

        slow_receiver.response = never_answer
        await create_push_channel(ada, **http_channel_input(slow_receiver, token="tk_SECRET"))  # noqa: S106
        await create_push_channel(bob, **http_channel_input(receiver))
        for client in (ada, bob):
            await deliver_to_mailbox(client, "Hello")
        task = asyncio.create_task(
            push_until_idle(make_push_worker(ada.environment, timeout_seconds=5.0))
        )
        async with asyncio.timeout(HANG_SECONDS):
            await slow_receiver.wait_for_requests(1)
            await receiver.wait_for_requests(1)
            await deliver_to_mailbox(ada, "A delivery is not held up")
        assert not task.done()
        await task
        for server in (slow_receiver,):
            assert len(server.requests) == 1
    assert (await load_push_channel(ada))[
        "lastError"
    ] == "The server did not respond within 5 seconds."
    logged = caplog.text + str([vars(record) for record in caplog.records])
    assert "Push notification failed" in logged
    assert "SECRET" not in logged
    assert "/topic" not in logged
    assert "Hello" not in logged


class PushWorkerCrash(BaseException):
    """A simulated end of the process."""


async def test_crash_after_push_repeats_the_push(
    ada: GraphQLClient, receiver: WebhookReceiver
) -> None:
    environment = ada.environment
    await create_push_channel(ada, **http_channel_input(receiver))
    await deliver_to_mailbox(ada, "Once")

    def crash_after_push(fault_point: str) -> None:
        if fault_point == "pushed":
            raise PushWorkerCrash

    crashing_worker = make_push_worker(replace(environment, reach_fault_point=crash_after_push))
    object.__setattr__(crashing_worker.environment, "options", environment.options)
    await push_worker.start_pushes_and_return_pause_seconds(crashing_worker)
    (serving,) = crashing_worker.served.values()
    with contextlib.suppress(PushWorkerCrash):
        await serving.task
    assert received_texts(receiver) == ["Once"]
    await push_until_idle(make_push_worker(environment))
    assert len(receiver.requests) == 1  # the crashed worker still has the lease
    await deregister_as_dead(environment)
    await push_until_idle(make_push_worker(environment))
    await push_until_idle(make_push_worker(environment))
    assert received_texts(receiver) == ["Once", "Once"]


async def test_two_workers_push_each_message_once(
    ada: GraphQLClient, bob: GraphQLClient, receiver: WebhookReceiver
) -> None:
    for client in (ada, bob):
        await create_push_channel(
            client, **http_channel_input(receiver, title=client.user.username)
        )
        for n in range(3):
            await deliver_to_mailbox(client, f"No. {n}")
    await asyncio.gather(*(push_until_idle(make_push_worker(ada.environment)) for _ in range(2)))
    for client in (ada, bob):
        requests = [
            request
            for request in receiver.requests
            if request.headers["title"] == client.user.username
        ]
        assert [request.raw for request in requests] == [b"No. 0", b"No. 1", b"No. 2"]


async def test_channel_changed_during_push_is_not_deactivated(
    ada: GraphQLClient, receiver: WebhookReceiver
) -> None:
    changed = asyncio.Event()

    async def answer_gone_after_change(_got: ReceivedRequest, writer: asyncio.StreamWriter) -> None:
        await changed.wait()
        writer.write(ERROR_RESPONSE % 410)

    receiver.response = answer_gone_after_change
    await create_push_channel(ada, **http_channel_input(receiver))
    await deliver_to_mailbox(ada, "Hello")
    task = asyncio.create_task(push_until_idle(make_push_worker(ada.environment)))
    await receiver.wait_for_requests(1)
    async with run_webhook_receiver() as other_receiver:
        await create_push_channel(ada, **http_channel_input(other_receiver))
        changed.set()
        await task
        await push_until_idle(make_push_worker(ada.environment))
        assert (await load_push_channel(ada))["active"] is True
        assert received_texts(other_receiver) == ["Hello"]


async def test_suspended_user_gets_no_push(
    ada: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver
) -> None:
    await create_push_channel(ada, **http_channel_input(receiver))
    suspend = """mutation ($on: Boolean!) { userUpdate(input: {users: {usernames: ["ada"]},
      set: {suspended: $on}}) { errors { message } } }"""
    assert (await root(suspend, on=True))["userUpdate"]["errors"] == []
    await deliver_to_mailbox(ada, "Hello")
    await push_until_idle(make_push_worker(ada.environment))
    assert receiver.requests == []
    await root(suspend, on=False)
    await push_until_idle(make_push_worker(ada.environment))
    assert received_texts(receiver) == ["Hello"]


async def test_private_addresses_are_checked_when_contacted(
    ada: GraphQLClient, receiver: WebhookReceiver
) -> None:
    environment = ada.environment
    await create_push_channel(ada, **http_channel_input(receiver))
    allow_local_pushes(environment, push_allow_private_networks=False)
    await deliver_to_mailbox(ada, "Hello")
    await push_until_idle(make_push_worker(environment))
    assert receiver.requests == []
    assert (await load_push_channel(ada))[
        "lastError"
    ] == "The host is in a private network: use a public address."
    await create_push_channel(ada, kind="HTTP", endpoint="http://push.example.net/topic")

    async def resolve_to_loopback(_host: str, _port: int) -> list[str]:
        return ["127.0.0.1"]

    await deliver_to_mailbox(ada, "Again")
    await push_until_idle(make_push_worker(environment, resolve=resolve_to_loopback))
    assert receiver.requests == []
    assert (await load_push_channel(ada))[
        "lastError"
    ] == "The host is in a private network: use a public address."


@pytest.mark.parametrize("private", [True, False])
async def test_push_hosts_are_resolved_by_configured_name_server(
    ada: GraphQLClient, receiver: WebhookReceiver, *, private: bool
) -> None:
    environment = ada.environment
    async with run_dns_zone(
        make_dns_zone({}, A={"push.example.net": "127.0.0.1"})
    ) as resolver_address:
        allow_local_pushes(
            environment, push_allow_private_networks=private, dns_resolver=resolver_address
        )
        await create_push_channel(
            ada, kind="HTTP", endpoint=f"http://push.example.net:{receiver.port}/topic"
        )
        await deliver_to_mailbox(ada, "Hello")
        worker = asyncio.create_task(
            push_worker.run_push_worker_until_stopped(environment, global_ids.encode)
        )
        try:
            async with asyncio.timeout(HANG_SECONDS):
                if private:
                    await receiver.wait_for_requests(1)
                else:
                    while (await load_push_channel(ada))["lastError"] is None:  # noqa: ASYNC110 - no event
                        await asyncio.sleep(0.1)
        finally:
            worker.cancel()
            await asyncio.gather(worker, return_exceptions=True)
    assert received_texts(receiver) == (["Hello"] if private else [])
    assert (await load_push_channel(ada))["lastError"] == (
        None if private else "The host is in a private network: use a public address."
    )


async def test_worker_pushes_after_wakeup(
    ada: GraphQLClient, bob: GraphQLClient, receiver: WebhookReceiver, statements: list[str]
) -> None:
    environment = ada.environment
    worker = asyncio.create_task(
        push_worker.run_push_worker_until_stopped(environment, global_ids.encode, NetworkPolicy())
    )
    try:
        await create_push_channel(ada, **http_channel_input(receiver))
        await wait_until(lambda: any("FROM push_channels" in statement for statement in statements))
        await deliver_to_mailbox(ada, "One")
        async with asyncio.timeout(HANG_SECONDS):
            await receiver.wait_for_requests(1)
        await deliver_to_mailbox(bob, "His")
        await deliver_to_mailbox(ada, "Two")
        async with asyncio.timeout(HANG_SECONDS):
            await receiver.wait_for_requests(2)
        assert received_texts(receiver) == ["One", "Two"]
    finally:
        worker.cancel()
        await asyncio.gather(worker, return_exceptions=True)


async def test_journal_is_read_with_constant_statements(
    ada: GraphQLClient, bob: GraphQLClient, receiver: WebhookReceiver, statements: list[str]
) -> None:
    async def count_statements(*clients: GraphQLClient) -> int:
        for client in clients:
            await deliver_to_mailbox(client, "Junk mail", mailbox_path="Junk")
        del statements[:]
        await push_until_idle(make_push_worker(ada.environment))
        return len(statements)

    for client in (ada, bob):
        await create_push_channel(client, **http_channel_input(receiver))
        await create_push_channel(client, key="k", token="t")  # noqa: S106
    await push_until_idle(make_push_worker(ada.environment))
    assert await count_statements(ada) == await count_statements(ada, bob)
    assert receiver.requests == []


async def test_many_messages_are_few_pushes(
    ada: GraphQLClient, receiver: WebhookReceiver, clock: ManualClock
) -> None:
    await create_push_channel(ada, **http_channel_input(receiver))
    worker = make_push_worker(ada.environment)
    for n in range(60):
        await deliver_to_mailbox(ada, f"No. {n}")
        await push_until_idle(worker)
        clock.tick(seconds=1)
    clock.tick(seconds=60)
    await push_until_idle(worker)
    assert len(receiver.requests) <= 2 * MAX_PUSHES_PER_WINDOW
    singles = [text for text in received_texts(receiver) if text.startswith("No.")]
    counts = [int(text.split()[0]) for text in received_texts(receiver) if text not in singles]
    assert len(singles) + sum(counts) == 60


async def test_more_changes_than_batch_size_are_pushed_in_rounds(
    ada: GraphQLClient,
    bob: GraphQLClient,
    receiver: WebhookReceiver,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(push_events, "MAX_CHANGES", 3)
    for client in (ada, bob):
        await create_push_channel(
            client, **http_channel_input(receiver, title=client.user.username)
        )
        for n in range(4):
            await deliver_to_mailbox(client, f"Junk {n}", mailbox_path="Junk")
        for n in range(3):
            await deliver_to_mailbox(client, f"No. {n}")
    worker = make_push_worker(ada.environment)
    async with asyncio.timeout(HANG_SECONDS):
        await push_until_idle(worker)
    for client in (ada, bob):
        requests = [
            request
            for request in receiver.requests
            if request.headers["title"] == client.user.username
        ]
        assert [request.raw for request in requests] == [b"No. 0", b"No. 1", b"No. 2"]
