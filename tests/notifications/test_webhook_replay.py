"""Webhooks: missed changes, and replay of past events."""

from collections.abc import AsyncIterator

import pytest

from mail.maintenance import journal_retention, restore_mark
from models.runtime.environment import Environment
from resolvers.admin import tasks
from tests.conftest import GraphQLClient, ManualClock, deliver_to
from tests.support.servers.webhook_receiver import (
    ReceivedRequest,
    WebhookReceiver,
    allow_local_webhooks,
    create_webhook,
    load_webhook_log,
    make_webhook_worker,
    post_until_idle,
    run_webhook_receiver,
)

REPLAY_MUTATION = """mutation ($input: WebhookReplayInput!) { webhookReplay(input: $input) {
  task { id } errors { code message } } }"""


@pytest.fixture
async def receiver(environment: Environment) -> AsyncIterator[WebhookReceiver]:
    allow_local_webhooks(environment)
    async with run_webhook_receiver() as http_receiver:
        yield http_receiver


def user_ref(client: GraphQLClient) -> dict[str, str]:
    return {"username": client.user.username}


async def test_database_restore_is_reported_as_missed_changes(
    ada: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver, clock: ManualClock
) -> None:
    await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
    worker = make_webhook_worker(ada.environment)
    await deliver_to(ada, "Before")
    await post_until_idle(worker)
    clock.tick(seconds=1)
    await restore_mark.begin_incarnation_after_consistent_restore(ada.environment)
    await deliver_to(ada, "After")
    await post_until_idle(worker)
    assert receiver.requests[0].body["type"] == "MESSAGE_RECEIVED"
    ada_bodies = [
        request.body for request in receiver.requests[1:] if username_of_request(request) == "ada"
    ]
    assert [body["type"] for body in ada_bodies] == ["CHANGES_MISSED", "MESSAGE_RECEIVED"]
    assert (ada_bodies[0]["missed"], ada_bodies[0]["reason"]) == (None, "STORE_RESTORED")
    assert len({request.body["id"] for request in receiver.requests}) == len(receiver.requests)


def username_of_request(request: ReceivedRequest) -> str | None:
    return (request.body["user"] or {}).get("username")


async def test_entries_deleted_unread_are_reported_as_missed(
    ada: GraphQLClient,
    bob: GraphQLClient,
    root: GraphQLClient,
    receiver: WebhookReceiver,
    clock: ManualClock,
) -> None:
    async with run_webhook_receiver() as bob_receiver, run_webhook_receiver() as later_receiver:
        webhook_id, _ = await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
        await create_webhook(root, bob_receiver.url, "MESSAGE_RECEIVED", user=user_ref(bob))
        for n in range(3):
            await deliver_to(ada, f"Lost {n}")
        clock.tick(days=31, hours=1)
        await create_webhook(root, later_receiver.url, "MESSAGE_RECEIVED")
        await deliver_to(ada, "Left")
        assert await journal_retention.delete_excess_and_old_entries(ada.environment) > 0
        worker = make_webhook_worker(ada.environment)
        await post_until_idle(worker)
        await post_until_idle(worker)  # reported once
        ada_requests = [
            request for request in receiver.requests if username_of_request(request) == "ada"
        ]
        assert [request.body["type"] for request in ada_requests] == [
            "CHANGES_MISSED",
            "MESSAGE_RECEIVED",
        ]
        missed = ada_requests[0].body
        assert missed["missed"] >= 3  # including the events of the account's creation
        assert missed["objects"] == []
        assert missed["id"].endswith("-missed")
        assert [request.body["type"] for request in later_receiver.requests] == ["MESSAGE_RECEIVED"]
        assert {
            (username_of_request(request), request.body["type"])
            for request in bob_receiver.requests
        } == {
            (None, "CHANGES_MISSED"),  # of the domain and of the platform
            ("bob", "CHANGES_MISSED"),
        }
        log = (await load_webhook_log(root, webhook_id))["deliveries"]["nodes"]
        assert missed in [node["body"] for node in log if node["type"] == "CHANGES_MISSED"]
        replay = {"webhook": {"id": webhook_id}, "after": missed["cursor"]}
        data = await root(REPLAY_MUTATION, input=replay)
        assert data["webhookReplay"]["errors"] == []


async def test_events_after_cursor_are_replayed(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, receiver: WebhookReceiver
) -> None:
    webhook_id, _ = await create_webhook(root, receiver.url, "MESSAGE_RECEIVED", user=user_ref(ada))
    for subject in ("One", "Two", "Three"):
        await deliver_to(ada, subject)
    await post_until_idle(make_webhook_worker(environment))
    first_body = receiver.requests[0].body
    replay_mutation = """mutation ($id: ID!, $after: Cursor!) { webhookReplay(
      input: {webhook: {id: $id}, after: $after}) { task { kind totalCount }
      errors { message path ... on ValidationError { constraint } } } }"""
    payload = (await root(replay_mutation, id=webhook_id, after=first_body["cursor"]))[
        "webhookReplay"
    ]
    assert payload == {"task": {"kind": "WEBHOOK_REPLAY", "totalCount": 2}, "errors": []}
    while await tasks.run_next_task(environment):
        pass
    await post_until_idle(make_webhook_worker(environment))
    event_ids = [request.body["id"] for request in receiver.requests]
    *replayed_ids, _ = event_ids[3:]  # the last is the message to ada about the new webhook
    assert replayed_ids == event_ids[1:3]  # repeated events keep their ids
    for invalid_cursor, constraint in (("1.77.1", "CURSOR"), (f"1.{ada.user.id}.999999", "CURSOR")):
        error_payload = (await root(replay_mutation, id=webhook_id, after=invalid_cursor))[
            "webhookReplay"
        ]
        assert [e["constraint"] for e in error_payload["errors"]] == [constraint]
