"""Webhooks: events, scope, signatures, replay, validation and permissions."""

from collections.abc import AsyncIterator
from typing import Any

import pytest

from graph.changes.changed_types import TYPE_NAME_BY_EVENT_TYPE
from graph.types import global_ids
from mail.maintenance import journal_retention, restore_mark
from models.domains.tables import Domain
from models.events.event_types import (
    ADDRESS_EVENT_TYPES,
    DOMAIN_EVENT_TYPES,
    USER_EVENT_TYPES,
    EventType,
)
from models.runtime.environment import Environment
from models.runtime.secret_box import SecretBox
from models.users.roles import AdminPermission, Role
from models.users.tables import User
from resolvers.admin import secret_rotation, tasks
from resolvers.auth import authentication
from tests.conftest import GraphQLClient, ManualClock, deliver_to, make_client, make_user
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.operations.bulk_operations import inbox_selection, run_message_mutation
from tests.support.servers.webhook_receiver import (
    WEBHOOK_CREATE,
    ReceivedRequest,
    WebhookReceiver,
    allow_local_webhooks,
    create_webhook,
    load_webhook_log,
    make_webhook_worker,
    post_until_idle,
    run_webhook_create,
    run_webhook_receiver,
)
from tests.support.stores.store_snapshot import snapshot_rows

REPLAY_MUTATION = """mutation ($input: WebhookReplayInput!) { webhookReplay(input: $input) {
  task { id } errors { code message } } }"""
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


async def test_database_restore_is_reported_as_missed_changes(
    ada: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver, clock: ManualClock
) -> None:
    await create_webhook(root, receiver.url, "MESSAGE_RECEIVED")
    worker = make_webhook_worker(ada.environment)
    await deliver_to(ada, "Before")
    await post_until_idle(worker)
    clock.tick(seconds=1)
    await restore_mark.begin_after_consistent_restore(ada.environment)
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
        usernames = [request.body["user"]["username"] for request in receiver.requests]
        assert sorted(usernames) == ["ada", "bob"]
        assert [request.body["user"]["username"] for request in user_receiver.requests] == ["ada"]
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
    attempt = """mutation ($p: String!) { authenticate(input: {username: "eve", password: $p,
      scope: IMAP}) { errors { code } } }"""
    for password in ("wrong", PASSWORD):
        await ada(attempt, p=password)
    await authentication.wait_for_background_tasks(
        environment
    )  # the event is written after the response
    await post_until_idle(make_webhook_worker(environment))
    (request,) = receiver.requests
    (event,) = request.body["objects"]
    assert (event["action"], event["result"]) == ("AUTHENTICATE", "FAILURE")
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
    resealed = await secret_rotation.reencrypt_all(environment)
    assert (resealed.reencrypted_count, resealed.failed_contexts) == (1, [])
    object.__setattr__(environment, "secret_box", SecretBox({"newer": b"n" * 32}))
    await deliver_to(ada, "Hello")
    await post_until_idle(make_webhook_worker(environment))
    assert receiver.requests[0].is_signed_with(secret)


async def test_ping_is_posted_to_inactive_webhook(
    root: GraphQLClient, environment: Environment, receiver: WebhookReceiver, ada: GraphQLClient
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
    assert (newest["state"], newest["error"]) == ("FAILED", "status 500")


async def test_events_after_cursor_are_replayed(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, receiver: WebhookReceiver
) -> None:
    webhook_id, _ = await create_webhook(root, receiver.url, "MESSAGE_RECEIVED", user=user_ref(ada))
    for subject in ("One", "Two", "Three"):
        await deliver_to(ada, subject)
    await post_until_idle(make_webhook_worker(environment))
    first_body = receiver.requests[0].body
    replay_mutation = """mutation ($id: ID!, $after: Cursor!) { webhookReplay(
      input: {webhook: {id: $id}, after: $after}) { task { kind total }
      errors { message path ... on ValidationError { constraint } } } }"""
    payload = (await root(replay_mutation, id=webhook_id, after=first_body["cursor"]))[
        "webhookReplay"
    ]
    assert payload == {"task": {"kind": "WEBHOOK_REPLAY", "total": 2}, "errors": []}
    while await tasks.run_next_task(environment):
        pass
    await post_until_idle(make_webhook_worker(environment))
    event_ids = [request.body["id"] for request in receiver.requests]
    assert event_ids[3:] == event_ids[1:3]  # repeated events keep their ids
    for invalid_cursor, constraint in (("1.77.1", "CURSOR"), (f"1.{ada.user.id}.999999", "CURSOR")):
        error_payload = (await root(replay_mutation, id=webhook_id, after=invalid_cursor))[
            "webhookReplay"
        ]
        assert [e["constraint"] for e in error_payload["errors"]] == [constraint]


@pytest.mark.parametrize(
    ("fields", "path", "constraint"),
    [
        ({"types": []}, ["types"], "LENGTH"),
        ({"types": ["USER_CREATED", "RESYNC"]}, ["types", "1"], "UNSUPPORTED"),
        ({"types": ["PING"]}, ["types", "0"], "UNSUPPORTED"),
        ({"types": ["FILTER_MATCHED"]}, ["types", "0"], "UNSUPPORTED"),
        ({"url": "ftp://example.com/"}, ["url"], "URL"),
        ({"url": "smtp://example.com/"}, ["url"], "URL"),
        ({"url": "https://"}, ["url"], "URL"),
        ({"url": "https://example.com:99999/"}, ["url"], "URL"),
        ({"url": "https://u:p@example.com/"}, ["url"], "URL"),
        ({"url": "https://example.com/#x"}, ["url"], "URL"),
        ({"url": "https://example.com/" + "x" * 2048}, ["url"], "URL"),
        ({"url": "http://localhost:1/"}, ["url"], "PRIVATE_NETWORK"),
        ({"url": "http://127.0.0.1/"}, ["url"], "PRIVATE_NETWORK"),
        ({"url": "http://0.0.0.0/"}, ["url"], "PRIVATE_NETWORK"),
        ({"url": "http://10.1.2.3/"}, ["url"], "PRIVATE_NETWORK"),
        ({"url": "http://169.254.169.254/latest"}, ["url"], "PRIVATE_NETWORK"),
        ({"url": "http://[::1]/"}, ["url"], "PRIVATE_NETWORK"),
        ({"url": "http://[::ffff:10.0.0.1]/"}, ["url"], "PRIVATE_NETWORK"),
        ({"url": "http://[fe80::1]/"}, ["url"], "PRIVATE_NETWORK"),
        ({"url": "http://[64:ff9b::7f00:1]/"}, ["url"], "PRIVATE_NETWORK"),
        ({"url": "http://[2002:7f00:1::]/"}, ["url"], "PRIVATE_NETWORK"),
        ({"url": "http://db.internal/"}, ["url"], "PRIVATE_NETWORK"),
    ],
)
async def test_invalid_webhook_input_is_refused(
    root: GraphQLClient, fields: dict[str, Any], path: list[str], constraint: str
) -> None:
    webhook_input = {"url": "https://example.com/", "types": None, **fields}
    payload = (await root(WEBHOOK_CREATE, input=webhook_input))["webhookCreate"]
    errors = [(e["path"], e["constraint"]) for e in payload["errors"]]
    assert [(error_path[:1], rule) for error_path, rule in errors] == [(path[:1], constraint)]
    listing = await root("{ webhooks { totalCount } }")
    assert listing["webhooks"]["totalCount"] == 0


async def test_webhooks_are_filtered_by_type_and_user(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    allow_local_webhooks(environment)
    await create_webhook(root, "https://a.example/", "USER_CREATED", "MESSAGE_ADDED")
    await create_webhook(root, "https://b.example/", "USER_CREATED", user=user_ref(ada))
    await create_webhook(root, "https://c.example/", types=None)
    listing = "query ($f: WebhookFilter) { webhooks(filter: $f) { nodes { url } } }"

    async def list_hosts(**conditions: Any) -> list[str]:
        webhooks = (await root(listing, f=conditions or None))["webhooks"]["nodes"]
        return [str(webhook["url"])[8:9] for webhook in webhooks]

    assert await list_hosts() == ["a", "b", "c"]
    no_conditions: list[dict[str, Any]] = [{}, {"type": None, "user": None}]
    for filter_input in no_conditions:
        (error,) = (await root.execute(listing, f=filter_input))["errors"]
        assert (error["path"], error["extensions"]["code"]) == (["webhooks"], "BAD_USER_INPUT")
    assert await list_hosts(type="USER_CREATED") == ["a", "b", "c"]
    assert await list_hosts(type="MESSAGE_ADDED") == ["a", "c"]
    assert await list_hosts(type="MESSAGE_MOVED") == ["c"]
    assert await list_hosts(user=user_ref(ada)) == ["b"]


async def test_domain_admin_manages_only_webhooks_of_own_domain(
    environment: Environment, root: GraphQLClient, ada: GraphQLClient
) -> None:
    permissions = [AdminPermission.IMPERSONATE]
    domain_admin = await make_domain_admin(environment, ada.http, "dora", permissions)
    async with environment.write_session(0) as session:
        session.add(
            Domain(
                id=environment.new_id(),
                name="other.example",
                created_at=environment.now(),
                updated_at=environment.now(),
            )
        )
    url = "https://hooks.example.com/"
    platform_webhook_id, _ = await create_webhook(root, url)
    domain_webhook = await run_webhook_create(domain_admin, url, "MESSAGE_ADDED")
    assert domain_webhook["webhook"]["domain"] == {"name": "example.org"}
    user_webhook = await run_webhook_create(domain_admin, url, user=user_ref(ada))
    webhook = user_webhook["webhook"]
    assert (webhook["user"], webhook["domain"]) == ({"username": "ada"}, {"name": "example.org"})
    payload = await run_webhook_create(domain_admin, url, domain={"name": "other.example"})
    assert [e["code"] for e in payload["errors"]] == ["NOT_FOUND"]
    admin = await make_client(environment, ada.http, "boss", role=Role.ADMIN)
    payload = await run_webhook_create(domain_admin, url, user=user_ref(admin))
    assert [e["code"] for e in payload["errors"]] == ["NOT_FOUND"]
    visible = (await domain_admin("{ webhooks { nodes { id } } }"))["webhooks"]["nodes"]
    assert [webhook_node["id"] for webhook_node in visible] == [
        domain_webhook["webhook"]["id"],
        user_webhook["webhook"]["id"],
    ]
    for name in ("Delete", "Test", "Update"):
        extra_field = "set: {active: false}" if name == "Update" else ""
        text = """mutation ($id: ID!) { done: webhook%s(input: {webhooks: [{id: $id}] %s}) {
          errors { code path } } }"""
        result = (await domain_admin(text % (name, extra_field), id=platform_webhook_id))["done"]
        assert result["errors"] == [{"code": "NOT_FOUND", "path": ["webhooks", "0"]}]
    assert (await load_webhook_log(domain_admin, platform_webhook_id)) is None
    assert (
        await load_webhook_log(ada, domain_webhook["webhook"]["id"])
    ) is None  # a USER has no access to webhooks


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


async def test_webhook_fields_cannot_be_set_to_null(root: GraphQLClient) -> None:
    webhook_id, _ = await create_webhook(root, "https://hooks.example.com/", "USER_CREATED")
    text = """mutation ($input: WebhookUpdateInput!) { webhookUpdate(input: $input) {
      errors { code } } }"""
    for name in ("url", "active"):
        input_fields = {"webhooks": [{"id": webhook_id}], "set": {name: None}}
        response = await root.execute(text, input=input_fields)
        assert [e["extensions"]["code"] for e in response["errors"]] == ["BAD_USER_INPUT"]


async def test_webhook_update_error_names_field_of_patch(root: GraphQLClient) -> None:
    webhook_id, _ = await create_webhook(root, "https://hooks.example.com/", "USER_CREATED")
    text = """mutation ($input: WebhookUpdateInput!) { webhookUpdate(input: $input) {
      errors { code path } } }"""
    input_fields = {"webhooks": [{"id": webhook_id}], "set": {"url": "http://10.0.0.1/"}}
    payload = (await root(text, input=input_fields))["webhookUpdate"]
    assert payload["errors"] == [{"code": "VALIDATION", "path": ["set", "url"]}]
    malformed = {"webhooks": [{"id": webhook_id}, {"id": "usr_1"}], "set": {"active": False}}
    payload = (await root(text, input=malformed))["webhookUpdate"]
    assert payload["errors"] == [{"code": "VALIDATION", "path": ["webhooks", "1", "id"]}]


async def test_deliveries_are_read_backwards(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, receiver: WebhookReceiver
) -> None:
    webhook_id, _ = await create_webhook(root, receiver.url, "MESSAGE_RECEIVED", user=user_ref(ada))
    for subject in ("One", "Two", "Three"):
        await deliver_to(ada, subject)
    await post_until_idle(make_webhook_worker(environment))
    text = """query ($id: ID!, $last: Int, $before: String) { node(id: $id) { ... on Webhook {
      deliveries(last: $last, before: $before) { nodes { id }
        pageInfo { hasPreviousPage startCursor } } } } }"""
    newest_first = (await load_webhook_log(root, webhook_id))["deliveries"]["nodes"]
    oldest = (await root(text, id=webhook_id, last=1))["node"]["deliveries"]
    assert [node["id"] for node in oldest["nodes"]] == [newest_first[2]["id"]]
    cursor = oldest["pageInfo"]["startCursor"]
    rest = (await root(text, id=webhook_id, last=5, before=cursor))["node"]["deliveries"]
    assert [node["id"] for node in rest["nodes"]] == [node["id"] for node in newest_first[:2]]
    assert rest["pageInfo"]["hasPreviousPage"] is False


def test_every_event_type_of_the_journal_has_an_object_type() -> None:
    without_object = {EventType.RESYNC, EventType.PING, EventType.CHANGES_MISSED}
    assert set(TYPE_NAME_BY_EVENT_TYPE) == set(EventType) - without_object
    for name in {*TYPE_NAME_BY_EVENT_TYPE.values()}:
        assert global_ids.decode(name, global_ids.encode(name, 5)) == 5
