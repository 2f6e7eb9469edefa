"""Webhooks: which events are posted, to which webhook, and how they are signed."""

from collections.abc import AsyncIterator

import pytest

from graph.changes.changed_types import TYPE_NAME_BY_EVENT_TYPE
from graph.types import global_ids
from models.events.event_types import (
    ADDRESS_EVENT_TYPES,
    DOMAIN_EVENT_TYPES,
    USER_EVENT_TYPES,
    EventType,
)
from models.runtime.environment import Environment
from models.runtime.secret_box import SecretBox
from models.users.tables import User
from resolvers.admin import secret_rotation
from resolvers.auth import authentication
from tests.conftest import GraphQLClient, ManualClock, deliver_to, make_user
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.operations.bulk_operations import inbox_selection, run_message_mutation
from tests.support.servers.webhook_receiver import (
    WebhookReceiver,
    allow_local_webhooks,
    create_webhook,
    load_webhook_log,
    make_webhook_worker,
    post_until_idle,
    run_webhook_receiver,
)
from tests.support.stores.store_snapshot import snapshot_rows

PASSWORD = "correct horse battery"  # noqa: S105 - the password of a test account


@pytest.fixture
async def receiver(environment: Environment) -> AsyncIterator[WebhookReceiver]:
    allow_local_webhooks(environment)
    async with run_webhook_receiver() as http_receiver:
        yield http_receiver


def user_ref(client: GraphQLClient) -> dict[str, str]:
    return {"username": client.user.username}


async def test_received_message_is_posted_with_signature(
    ada: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver, clock: ManualClock
) -> None:
    webhook_id, secret = await create_webhook(
        root, receiver.url, "MESSAGE_RECEIVED", user=user_ref(ada)
    )
    stored_message = await deliver_to(ada, "Hello")
    await post_until_idle(make_webhook_worker(ada.environment))
    (request,) = receiver.requests
    assert request.path == "/hook?x=1"
    assert request.is_signed_with(secret)
    assert not request.is_signed_with("whsec_" + "A" * 44)
    assert int(request.headers["webhook-timestamp"]) == int(clock().timestamp())
    assert request.headers["content-type"] == "application/json"
    body = request.body
    assert body["id"] == request.headers["webhook-id"]
    assert body["type"] == "MESSAGE_RECEIVED"
    assert body["user"] == {"id": global_ids.encode("User", ada.user.id), "username": "ada"}
    (message,) = body["objects"]
    assert message["id"] == global_ids.encode("Message", stored_message.message_id)
    assert message["mailbox"] == global_ids.encode("Mailbox", (await ada.load_mailbox()).id)
    assert b"Hello" not in request.raw
    (entry,) = (log := await load_webhook_log(root, webhook_id))["deliveries"]["nodes"]
    assert (entry["state"], entry["attempt"], entry["status"]) == ("DELIVERED", 1, 200)
    assert entry["body"] == body
    assert (log["failures"], log["lastDeliveryAt"]) == (0, "2030-01-01T00:00:00Z")
    await post_until_idle(make_webhook_worker(ada.environment))
    assert len(receiver.requests) == 1


async def test_events_before_activation_are_not_posted(
    ada: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver, clock: ManualClock
) -> None:
    await deliver_to(ada, "Before")
    clock.tick(seconds=1)
    webhook_id, _ = await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
    await deliver_to(ada, "Behind")
    await post_until_idle(make_webhook_worker(ada.environment))
    assert receiver.event_types == ["MESSAGE_RECEIVED"]
    update = """mutation ($input: WebhookUpdateInput!) { webhookUpdate(input: $input) {
      webhooks { active } errors { code } } }"""
    for active in (False, True):
        if active:
            await deliver_to(ada, "Meanwhile")
            await post_until_idle(make_webhook_worker(ada.environment))
            clock.tick(seconds=1)
        payload = await root(
            update, input={"webhooks": [{"id": webhook_id}], "set": {"active": active}}
        )
        assert payload["webhookUpdate"] == {"webhooks": [{"active": active}], "errors": []}
    await deliver_to(ada, "Again")
    await post_until_idle(make_webhook_worker(ada.environment))
    assert receiver.event_types == ["MESSAGE_RECEIVED"] * 2


def users_of_received_messages(receiver: WebhookReceiver) -> list[str]:
    """Return the usernames of the MESSAGE_RECEIVED events of all requests."""
    return [
        request.body["user"]["username"]
        for request in receiver.requests
        if request.body["type"] == "MESSAGE_RECEIVED"
    ]


async def test_webhook_gets_only_events_of_its_user_or_domain(
    ada: GraphQLClient,
    bob: GraphQLClient,
    root: GraphQLClient,
    receiver: WebhookReceiver,
    clock: ManualClock,
) -> None:
    environment = ada.environment
    clock.tick(seconds=1)
    async with run_webhook_receiver() as user_receiver, run_webhook_receiver() as domain_receiver:
        await create_webhook(root, receiver.url)
        await create_webhook(root, user_receiver.url, user=user_ref(ada))
        await create_webhook(
            root, domain_receiver.url, "MESSAGE_RECEIVED", domain={"name": "example.org"}
        )
        await deliver_to(ada, "One")
        await deliver_to(bob, "Two")
        await post_until_idle(make_webhook_worker(environment))
        assert sorted(users_of_received_messages(receiver)) == ["ada", "bob"]
        assert users_of_received_messages(user_receiver) == ["ada"]
        assert {request.body["user"]["username"] for request in user_receiver.requests} == {"ada"}
        assert sorted(request.body["user"]["username"] for request in domain_receiver.requests) == [
            "ada",
            "bob",
        ]
        domain_ids = {request.body["domain"] for request in domain_receiver.requests}
        assert len(domain_ids) == 1
        assert str(*domain_ids).startswith("dom_")


async def test_user_and_address_changes_are_posted(
    root: GraphQLClient, environment: Environment, receiver: WebhookReceiver, clock: ManualClock
) -> None:
    await make_user(environment, "first")  # creates the domain
    clock.tick(seconds=1)
    await create_webhook(
        root,
        receiver.url,
        *sorted(USER_EVENT_TYPES | ADDRESS_EVENT_TYPES | DOMAIN_EVENT_TYPES),
    )
    zoe = await make_user(environment, "zoe")
    await post_until_idle(make_webhook_worker(environment))
    user_id = global_ids.encode("User", zoe.id)
    events = [
        (request.body["type"], request.body["objects"][0]["id"]) for request in receiver.requests
    ]
    assert ("USER_CREATED", user_id) in events
    assert [name for name, _ in events if name.startswith("ADDRESS_")] == ["ADDRESS_CREATED"]
    del receiver.requests[:]
    change = """mutation ($id: ID!) { userUpdate(input: {users: {ids: [$id]},
      set: {name: "Zoe"}}) { errors { message } } }"""
    assert (await root(change, id=user_id))["userUpdate"]["errors"] == []
    await post_until_idle(make_webhook_worker(environment))
    # one request, although the journals of the user and of the domain have the event
    (request,) = receiver.requests
    assert (request.body["type"], request.body["objects"]) == (
        "USER_UPDATED", [{"id": user_id, "changed": ["name"]}],
    )  # fmt: skip
    del receiver.requests[:]
    delete = "mutation ($id: ID!) { userDelete(input: {users: {ids: [$id]}}) { errors { code } } }"
    assert (await root(delete, id=user_id))["userDelete"]["errors"] == []
    await post_until_idle(make_webhook_worker(environment))
    assert {"USER_DELETED", "ADDRESS_DELETED"} <= set(receiver.event_types)


async def test_failed_login_is_posted(
    environment: Environment, root: GraphQLClient, ada: GraphQLClient, receiver: WebhookReceiver
) -> None:
    eve = await make_user(environment, "eve", password=PASSWORD)
    await create_webhook(root, receiver.url, "SIGN_IN_FAILED", user={"username": "eve"})
    attempt = """mutation ($p: String!) { passwordVerify(input: {username: "eve", password: $p,
      scope: IMAP}) { errors { code } } }"""
    for password in ("wrong", PASSWORD):
        await ada(attempt, p=password)
    # the event is written after the response
    await authentication.wait_for_background_tasks(environment)
    await post_until_idle(make_webhook_worker(environment))
    (request,) = receiver.requests
    (event,) = request.body["objects"]
    assert (event["action"], event["result"]) == ("SIGN_IN_ATTEMPTED", "FAILURE")
    assert request.body["user"]["username"] == eve.username
    assert b"wrong" not in request.raw


async def test_bulk_change_is_one_request(
    ada: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver
) -> None:
    for n in range(3):
        await deliver_to(ada, f"No. {n}")
    await create_webhook(root, receiver.url, "MESSAGE_UPDATED")
    await run_message_mutation(
        ada, "messageUpdate", select=inbox_selection("1:3"), set={"seen": True}
    )
    await post_until_idle(make_webhook_worker(ada.environment))
    (request,) = receiver.requests
    assert [len(request.body["objects"]), request.body["objects"][0]["flags"]] == [3, ["\\Seen"]]


async def test_old_secret_also_signs_during_overlap(
    ada: GraphQLClient,
    root: GraphQLClient,
    receiver: WebhookReceiver,
    clock: ManualClock,
    environment: Environment,
) -> None:
    webhook_id, old_secret = await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
    rotate = """mutation ($id: ID!, $overlap: Duration!) { webhookSecretRotate(
      input: {webhook: {id: $id}, overlap: $overlap}) { secret errors { code } } }"""
    new_secret = (await root(rotate, id=webhook_id, overlap="PT1H"))["webhookSecretRotate"][
        "secret"
    ]
    assert new_secret != old_secret
    await deliver_to(ada, "Now")
    await post_until_idle(make_webhook_worker(environment))
    clock.tick(hours=2)
    await deliver_to(ada, "Later")
    await post_until_idle(make_webhook_worker(environment))
    during_overlap, after_overlap = receiver.requests
    assert [
        during_overlap.is_signed_with(old_secret),
        during_overlap.is_signed_with(new_secret),
    ] == [
        True,
        True,
    ]
    assert [after_overlap.is_signed_with(old_secret), after_overlap.is_signed_with(new_secret)] == [
        False,
        True,
    ]


async def test_secrets_are_stored_encrypted_and_can_be_reencrypted(
    root: GraphQLClient, environment: Environment, receiver: WebhookReceiver, ada: GraphQLClient
) -> None:
    _, secret = await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
    rows = await snapshot_rows(environment)
    assert secret not in str(rows)
    assert secret[6:] not in str(rows)
    two_key_box = SecretBox({**environment.secret_box.keys, "newer": b"n" * 32})
    object.__setattr__(environment, "secret_box", two_key_box)
    resealed = await secret_rotation.reencrypt_all_secrets(environment)
    assert (resealed.reencrypted_count, resealed.failed_contexts) == (1, [])
    object.__setattr__(environment, "secret_box", SecretBox({"newer": b"n" * 32}))
    await deliver_to(ada, "Hello")
    await post_until_idle(make_webhook_worker(environment))
    assert receiver.requests[0].is_signed_with(secret)


async def test_ping_is_posted_to_inactive_webhook(
    root: GraphQLClient,
    environment: Environment,
    receiver: WebhookReceiver,
    ada: GraphQLClient,
    caplog: pytest.LogCaptureFixture,
) -> None:
    webhook_id, secret = await create_webhook(root, receiver.url, "USER_CREATED", active=False)
    await deliver_to(ada, "Hello")
    test_mutation = """mutation ($id: ID!) { webhookTest(input: {webhooks: [{id: $id}]}) {
      webhooks { id } errors { code } } }"""
    payload = (await root(test_mutation, id=webhook_id))["webhookTest"]
    assert payload == {"webhooks": [{"id": webhook_id}], "errors": []}
    await post_until_idle(make_webhook_worker(environment))
    assert receiver.event_types == ["PING"]
    assert receiver.requests[0].is_signed_with(secret)
    receiver.response = b"HTTP/1.1 500 No\r\n\r\n"
    await root(test_mutation, id=webhook_id)
    await post_until_idle(make_webhook_worker(environment))
    newest = (await load_webhook_log(root, webhook_id))["deliveries"]["nodes"][0]
    assert (newest["state"], newest["error"]) == ("FAILED", "Unexpected status 500.")
    (record,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert record.msg == "Webhook delivery failed"


async def test_user_moved_out_of_domain_is_not_posted_to_its_webhooks(
    environment: Environment, ada: GraphQLClient, receiver: WebhookReceiver
) -> None:
    domain_admin = await make_domain_admin(environment, ada.http, "dora")
    await create_webhook(domain_admin, receiver.url, "MESSAGE_RECEIVED", user=user_ref(ada))
    await deliver_to(ada, "Here")
    await post_until_idle(make_webhook_worker(environment))
    async with environment.write_session(ada.user.id) as session:
        (await session.get_one(User, ada.user.id)).domain_id = None
    await deliver_to(ada, "Elsewhere")
    await post_until_idle(make_webhook_worker(environment))
    assert len(receiver.requests) == 1


def test_every_event_type_of_the_journal_has_an_object_type() -> None:
    without_object = {EventType.RESYNC, EventType.PING, EventType.CHANGES_MISSED}
    assert set(TYPE_NAME_BY_EVENT_TYPE) == set(EventType) - without_object
    for name in {*TYPE_NAME_BY_EVENT_TYPE.values()}:
        assert global_ids.decode(name, global_ids.encode(name, 5)) == 5
