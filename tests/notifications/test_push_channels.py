"""Push channels: contents and selection of pushes, validation, secrets and permissions."""

import json
from collections.abc import AsyncIterator
from email.header import decode_header, make_header
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from graph.types import global_ids
from models.runtime.environment import Environment
from models.runtime.secret_box import SecretBox
from models.users.roles import AdminPermission, UserPermission
from resolvers.admin import secret_rotation
from tests.conftest import GraphQLClient, ManualClock, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.mail_servers.smtp_and_dns_servers import server_tls_context, trusting_tls_context
from tests.support.operations.bulk_operations import run_message_mutation
from tests.support.operations.push_receivers import (
    PushSubscriber,
    allow_local_pushes,
    create_push_channel,
    decode_base64url,
    decode_form,
    deliver_to_mailbox,
    encode_base64url,
    http_channel_input,
    load_push_channel,
    make_push_worker,
    push_until_idle,
    received_texts,
    run_push_channel_set,
)
from tests.support.servers.webhook_receiver import WebhookReceiver, run_webhook_receiver
from tests.support.stores.store_snapshot import snapshot_rows

DELETE_MUTATION = """mutation ($refs: [PushChannelRef!]!) {
  pushChannelDelete(input: {pushChannels: $refs}) {
  deletedIds errors { code } } }"""
TEST_MUTATION = """mutation ($refs: [PushChannelRef!]!) {
  pushChannelTest(input: {pushChannels: $refs}) {
  pushChannels { id } errors { code } } }"""
PUBLIC_KEY_QUERY = "{ vapidPublicKey }"


@pytest.fixture
async def receiver(environment: Environment) -> AsyncIterator[WebhookReceiver]:
    async with run_webhook_receiver() as http_receiver:
        allow_local_pushes(
            environment, pushover_url=f"http://127.0.0.1:{http_receiver.port}/1/messages.json"
        )
        yield http_receiver


def paths_and_constraints(payload: Any) -> list[Any]:
    return [(e["path"], e.get("constraint") or e["code"]) for e in payload["errors"]]


async def test_received_message_is_pushed_by_pushover(
    ada: GraphQLClient, receiver: WebhookReceiver, clock: ManualClock
) -> None:
    await create_push_channel(ada, key="user-key", token="app-token")  # noqa: S106
    await deliver_to_mailbox(ada, "Hello", From="Bob <bob@example.net>")
    await push_until_idle(make_push_worker(ada.environment))
    (request,) = receiver.requests
    assert request.path == "/1/messages.json"
    assert decode_form(request) == {
        "token": "app-token", "user": "user-key", "title": "Bob", "message": "Hello",
        "priority": "0",
    }  # fmt: skip
    shown_channel = await load_push_channel(ada)
    assert (shown_channel["lastError"], shown_channel["lastPushAt"]) == (
        None,
        "2030-01-01T00:00:00Z",
    )
    clock.tick(hours=1)
    await push_until_idle(make_push_worker(ada.environment))
    assert len(receiver.requests) == 1


@pytest.mark.parametrize(
    ("contact", "expected_subject"),
    [("mailto:ops@example.org", "mailto:ops@example.org"), ("", "mailto:postmaster@mx")],
)
async def test_web_push_is_encrypted_and_signed_for_the_browser(
    ada: GraphQLClient,
    environment: Environment,
    clock: ManualClock,
    contact: str,
    expected_subject: str,
) -> None:
    allow_local_pushes(environment, push_contact=contact, hostname="mx")
    async with run_webhook_receiver(server_tls_context()) as service:
        browser = PushSubscriber(service.port)
        await create_push_channel(ada, kind="WEB_PUSH", endpoint=browser.subscription)
        message = await deliver_to_mailbox(ada, "Grüße", From="Bob <bob@example.net>")
        await push_until_idle(make_push_worker(environment, trusted_context=trusting_tls_context()))
    (request,) = service.requests
    assert browser.decrypt_push(request) == {
        "title": "Bob", "body": "Grüße", "count": 1,
        "message": global_ids.encode("Message", message.message_id),
    }  # fmt: skip
    assert (request.headers["ttl"], request.headers["urgency"]) == ("86400", "normal")
    scheme, _, parts = request.headers["authorization"].partition(" ")
    vapid_fields = dict(part.split("=", 1) for part in parts.split(","))
    assert scheme == "vapid"
    assert vapid_fields["k"] == (await ada(PUBLIC_KEY_QUERY))["vapidPublicKey"]
    jwt_header, claims, signature = vapid_fields["t"].split(".")
    jwt_claims = json.loads(decode_base64url(claims))
    assert jwt_claims["aud"] == f"https://127.0.0.1:{service.port}"
    assert jwt_claims["sub"] == expected_subject
    assert 0 < jwt_claims["exp"] - clock().timestamp() <= 24 * 3600
    raw_signature = decode_base64url(signature)
    signature_integers = int.from_bytes(raw_signature[:32]), int.from_bytes(raw_signature[32:])
    public_key = ec.EllipticCurvePublicKey.from_encoded_point(
        ec.SECP256R1(), decode_base64url(vapid_fields["k"])
    )
    public_key.verify(
        encode_dss_signature(*signature_integers),
        f"{jwt_header}.{claims}".encode(),
        ec.ECDSA(hashes.SHA256()),
    )


async def test_http_push_has_ntfy_headers(ada: GraphQLClient, receiver: WebhookReceiver) -> None:
    await create_push_channel(
        ada,
        **http_channel_input(receiver, token="tk_1", title="{SENDER_NAME}: Grüße"),  # noqa: S106
    )
    await deliver_to_mailbox(ada, "Hello", From="Zoë <zoe@example.net>")
    await push_until_idle(make_push_worker(ada.environment))
    (request,) = receiver.requests
    assert (request.path, request.raw) == ("/topic", b"Hello")
    assert request.headers["authorization"] == "Bearer tk_1"
    assert request.headers["priority"] == "default"
    assert request.headers["title"].startswith("=?utf-8?b?")
    assert str(make_header(decode_header(request.headers["title"]))) == "Zoë: Grüße"


async def test_placeholders_are_replaced_once_without_header_injection(
    ada: GraphQLClient, receiver: WebhookReceiver
) -> None:
    title = "{SENDER} {SENDER_ADDRESS} {NOTHING}"
    text = "{SUBJECT}|{TO_NAME}|{TO_ADDRESS}|{MSG_ID}"
    await create_push_channel(ada, **http_channel_input(receiver, title=title, text=text))
    await deliver_to_mailbox(
        ada,
        "{SENDER} =?utf-8?q?a=0D=0AX-Evil=3A_1?=",
        From="=?utf-8?q?Bob=0D=0AX-Evil=3A_1?= <bob@example.net>",
        To="Ada <ada@example.org>",
        Message_ID="<1@example.net>",
    )
    await push_until_idle(make_push_worker(ada.environment))
    (request,) = receiver.requests
    assert "x-evil" not in request.headers
    assert request.headers["title"].endswith("bob@example.net {NOTHING}")
    subject, *others = request.raw.decode().split("|")
    assert subject.startswith("{SENDER} a")
    assert others == ["Ada", "ada@example.org", "<1@example.net>"]


async def test_sender_filters_select_messages(
    ada: GraphQLClient, receiver: WebhookReceiver
) -> None:
    await create_push_channel(
        ada,
        **http_channel_input(
            receiver, senders=["bob@example.net", "@work.example"], sendersRegex="/^b.b@x/i"
        ),
    )
    for sender in ("bob@example.net", "eve@example.net", "any@work.example", "BAB@xy.example"):
        await deliver_to_mailbox(ada, f"From {sender}", From=sender)
        await push_until_idle(make_push_worker(ada.environment))
    assert received_texts(receiver) == [
        "From bob@example.net", "From any@work.example", "From BAB@xy.example",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "priority_header",
    [{"X-Priority": "1 (Highest)"}, {"Importance": "High"}, {"Priority": "urgent"}],
)
async def test_priority_filter_pushes_only_urgent_messages(
    ada: GraphQLClient, receiver: WebhookReceiver, priority_header: dict[str, str]
) -> None:
    await create_push_channel(ada, key="k", token="t", highPriorityOnly=True, passPriority=True)  # noqa: S106
    await deliver_to_mailbox(ada, "Later", **{"X-Priority": "3"})
    await deliver_to_mailbox(ada, "Now", **priority_header)
    await push_until_idle(make_push_worker(ada.environment))
    assert [
        (decode_form(request)["message"], decode_form(request)["priority"])
        for request in receiver.requests
    ] == [("Now", "1")]


async def test_only_unread_messages_in_selected_mailboxes_are_pushed(
    ada: GraphQLClient, receiver: WebhookReceiver
) -> None:
    create = """mutation ($p: [String!]!) { mailboxCreate(input: {paths: $p}) {
      mailboxes { id } errors { code } } }"""
    (lists_mailbox,) = (await ada(create, p=["Lists"]))["mailboxCreate"]["mailboxes"]
    await create_push_channel(ada, **http_channel_input(receiver))
    worker = make_push_worker(ada.environment)
    for path in ("Lists", "Junk", "INBOX"):
        await deliver_to_mailbox(ada, f"To {path}", mailbox_path=path)
        await push_until_idle(worker)
    assert received_texts(receiver) == ["To INBOX"]
    await create_push_channel(ada, kind="HTTP", mailboxes=[{"path": "Lists"}])
    assert (await load_push_channel(ada))["mailboxes"] == [{"path": "Lists"}]
    for path in ("Lists", "INBOX"):
        await deliver_to_mailbox(ada, f"Again to {path}", mailbox_path=path)
        await push_until_idle(worker)
    assert received_texts(receiver) == ["To INBOX", "Again to Lists"]
    delete_mutation = (
        "mutation ($id: ID!) { mailboxDelete(input: {mailboxes: [{id: $id}]}) { errors { code } } }"
    )
    assert (await ada(delete_mutation, id=lists_mailbox["id"]))["mailboxDelete"]["errors"] == []
    assert (await load_push_channel(ada))["mailboxes"] == []
    read_message = await deliver_to_mailbox(ada, "Read at once")
    await run_message_mutation(
        ada,
        "messageUpdate",
        select={"ids": [global_ids.encode("Message", read_message.message_id)]},
        set={"seen": True},
    )
    await deliver_to_mailbox(ada, "Last")
    await push_until_idle(worker)
    assert received_texts(receiver)[2:] == ["Last"]


async def test_muted_threads_and_uploaded_messages_are_not_pushed(
    ada: GraphQLClient, receiver: WebhookReceiver
) -> None:
    await create_push_channel(ada, **http_channel_input(receiver))
    worker = make_push_worker(ada.environment)
    await deliver_to_mailbox(ada, "Talk", Message_ID="<t@example.net>")
    await push_until_idle(worker)
    threads = "{ viewer { user { messages { nodes { thread { id } } } } } }"
    (node,) = (await ada(threads))["viewer"]["user"]["messages"]["nodes"]
    mute = """mutation ($id: ID!) { threadUpdate(
        input: {threads: [{id: $id}], set: {muted: true}}) {
      errors { code } } }"""
    await ada(mute, id=node["thread"]["id"])
    await deliver_to_mailbox(ada, "Re: Talk", In_Reply_To="<t@example.net>")
    upload = """mutation { messageImport(input: {mailbox: {path: "INBOX"},
      raw: "Subject: Put in\\n\\nx\\n"}) { errors { code } } }"""
    assert (await ada(upload))["messageImport"]["errors"] == []
    await push_until_idle(worker)
    assert received_texts(receiver) == ["Talk"]


async def test_several_messages_are_one_push_without_sender(
    ada: GraphQLClient, receiver: WebhookReceiver, clock: ManualClock
) -> None:
    await create_push_channel(ada, **http_channel_input(receiver, title="Mail from {SENDER}"))
    worker = make_push_worker(ada.environment)
    for n in range(12):
        await deliver_to_mailbox(ada, f"No. {n}", From="bob@example.net")
    await push_until_idle(worker)
    assert received_texts(receiver) == ["12 new messages"]
    assert receiver.requests[0].headers["title"] == "New mail"
    for n in range(10):
        await deliver_to_mailbox(ada, f"Then {n}")
        await push_until_idle(worker)
    assert len(receiver.requests) == 5  # the maximum per minute
    clock.tick(seconds=61)
    await push_until_idle(worker)
    assert received_texts(receiver)[5:] == ["6 new messages"]


async def test_messages_before_activation_are_not_pushed(
    ada: GraphQLClient, receiver: WebhookReceiver
) -> None:
    await deliver_to_mailbox(ada, "Before")
    await create_push_channel(ada, **http_channel_input(receiver))
    worker = make_push_worker(ada.environment)
    for active in (False, True):
        await create_push_channel(ada, kind="HTTP", active=active)
        await deliver_to_mailbox(ada, f"While {active}")
        await push_until_idle(worker)
    assert received_texts(receiver) == ["While True"]


async def test_test_push_is_sent_by_inactive_channel(
    ada: GraphQLClient, bob: GraphQLClient, receiver: WebhookReceiver
) -> None:
    channel_id = await create_push_channel(
        ada, **http_channel_input(receiver, active=False, title="Ping")
    )
    assert (await bob(TEST_MUTATION, refs=[{"id": channel_id}]))["pushChannelTest"]["errors"] == [
        {"code": "NOT_FOUND"}
    ]
    assert (await ada(TEST_MUTATION, refs=[{"id": channel_id}]))["pushChannelTest"]["errors"] == []
    await push_until_idle(make_push_worker(ada.environment))
    await push_until_idle(make_push_worker(ada.environment))
    (request,) = receiver.requests
    assert (request.headers["title"], request.raw) == ("Ping", b"This is a test")
    assert (await load_push_channel(ada))["lastPushAt"] is not None


INVALID_P256_KEY = encode_base64url(b"\4" + b"\1" * 64)  # no point of the curve


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"kind": "PUSHOVER", "key": "k"}, [(["token"], "REQUIRED")]),
        ({"kind": "HTTP"}, [(["endpoint"], "REQUIRED")]),
        ({"kind": "HTTP", "endpoint": "https://x.example", "key": "k"}, [(["key"], "EXCLUSIVE")]),
        ({"kind": "HTTP", "endpoint": "ftp://x.example"}, [(["endpoint"], "URL")]),
        ({"kind": "HTTP", "endpoint": {"a": 1}}, [(["endpoint"], "FORMAT")]),
        ({"kind": "HTTP", "endpoint": "http://127.0.0.1/x"}, [(["endpoint"], "PRIVATE_NETWORK")]),
        ({"kind": "HTTP", "endpoint": "https://db.internal/"}, [(["endpoint"], "PRIVATE_NETWORK")]),
        ({"kind": "WEB_PUSH", "endpoint": "https://x.example"}, [(["endpoint"], "FORMAT")]),
        (
            {"kind": "WEB_PUSH", "endpoint": {"endpoint": "http://x.example", "keys": {}}},
            [(["endpoint"], "URL")],
        ),
        (
            {
                "kind": "WEB_PUSH",
                "endpoint": {
                    "endpoint": "https://x.example",
                    "keys": {"p256dh": INVALID_P256_KEY, "auth": encode_base64url(b"a" * 16)},
                },
            },
            [(["endpoint"], "FORMAT")],
        ),
        (
            {"kind": "WEB_PUSH", "endpoint": {"endpoint": "https://[2600::1]/", "keys": {}}},
            [(["endpoint"], "URL")],
        ),
        ({"key": "k\n", "token": "t"}, [(["key"], "FORMAT")]),
        ({"key": "k", "token": "t", "title": "x" * 251}, [(["title"], "LENGTH")]),
        ({"key": "k", "token": "t", "text": "a\tb"}, [(["text"], "PATTERN")]),
        ({"key": "k", "token": "t", "senders": ["@"]}, [(["senders", "0"], "PATTERN")]),
        ({"key": "k", "token": "t", "senders": ["a.example"] * 101}, [(["senders"], "MAX")]),
        ({"key": "k", "token": "t", "sendersRegex": "(a"}, [(["sendersRegex"], "PATTERN")]),
        ({"key": "k", "token": "t", "sendersRegex": r"(a)\1"}, [(["sendersRegex"], "PATTERN")]),
        (
            {"key": "k", "token": "t", "title": "", "sendersRegex": "(?=a)"},
            [(["sendersRegex"], "PATTERN"), (["title"], "LENGTH")],
        ),
        (
            {"key": "k", "token": "t", "mailboxes": [{"path": "None"}]},
            [(["mailboxes", "0"], "NOT_FOUND")],
        ),
    ],
)
async def test_invalid_channel_is_refused_and_not_stored(
    ada: GraphQLClient, fields: dict[str, Any], expected: Any
) -> None:
    assert paths_and_constraints(await run_push_channel_set(ada, **fields)) == expected
    assert (await ada("{ viewer { user { pushChannels { id } } } }"))["viewer"]["user"] == {
        "pushChannels": []
    }


async def test_channel_of_a_kind_is_unique_and_partially_updated(
    ada: GraphQLClient, receiver: WebhookReceiver
) -> None:
    channel_id = await create_push_channel(
        ada,
        key="k1",
        token="t1",  # noqa: S106
        text="A",
        senders=["x.example"],
    )
    payload = await run_push_channel_set(
        ada, key="k2", text=None, highPriorityOnly=True, senders=None
    )
    (updated_channel,) = payload["pushChannels"]
    assert updated_channel["id"] == channel_id
    assert (
        updated_channel["text"],
        updated_channel["highPriorityOnly"],
        updated_channel["senders"],
    ) == (None, True, [])
    await create_push_channel(ada, key="k2", highPriorityOnly=False)
    await deliver_to_mailbox(ada, "Hello")
    await push_until_idle(make_push_worker(ada.environment))
    assert [decode_form(receiver.requests[0])[name] for name in ("user", "token")] == ["k2", "t1"]


async def test_secrets_are_encrypted_hidden_and_can_be_reencrypted(
    ada: GraphQLClient, environment: Environment, receiver: WebhookReceiver, root: GraphQLClient
) -> None:
    fields = http_channel_input(receiver, token="tk_SECRET", users={"usernames": ["ada"]})  # noqa: S106
    payload = await run_push_channel_set(root, **fields)
    await run_push_channel_set(ada, key="KEY-SECRET", token="t")  # noqa: S106
    public_key = (await ada(PUBLIC_KEY_QUERY))["vapidPublicKey"]
    assert len(decode_base64url(public_key)) == 65
    rows = str(await snapshot_rows(environment))
    for secret in ("SECRET", f"{receiver.port}/topic"):
        assert secret not in rows
        assert secret not in str(payload)
    two_key_box = SecretBox({**environment.secret_box.keys, "newer": b"n" * 32})
    object.__setattr__(environment, "secret_box", two_key_box)
    rotation = await secret_rotation.reencrypt_all(environment)
    assert (rotation.reencrypted_count, rotation.failed_contexts) == (3, [])
    object.__setattr__(environment, "secret_box", SecretBox({"newer": b"n" * 32}))
    await deliver_to_mailbox(ada, "Hello")
    await push_until_idle(make_push_worker(environment))
    assert len(receiver.requests) == 2
    assert (await ada(PUBLIC_KEY_QUERY))["vapidPublicKey"] == public_key


async def test_channel_is_hidden_from_other_users(
    ada: GraphQLClient, bob: GraphQLClient, receiver: WebhookReceiver
) -> None:
    channel_id = await create_push_channel(ada, **http_channel_input(receiver))
    node_query = "query ($id: ID!) { node(id: $id) { ... on PushChannel { kind } } }"
    assert (await ada(node_query, id=channel_id))["node"] == {"kind": "HTTP"}
    assert (await bob(node_query, id=channel_id))["node"] is None
    assert (await bob(DELETE_MUTATION, refs=[{"id": channel_id}]))["pushChannelDelete"][
        "errors"
    ] == [{"code": "NOT_FOUND"}]
    payload = await run_push_channel_set(
        bob, **http_channel_input(receiver, users={"usernames": ["ada"]})
    )
    assert paths_and_constraints(payload)[0][1] == "NOT_FOUND"
    mailbox_id = global_ids.encode("Mailbox", (await ada.load_mailbox()).id)
    assert (
        paths_and_constraints(
            await run_push_channel_set(
                bob, **http_channel_input(receiver, mailboxes=[{"id": mailbox_id}])
            )
        )[0][1]
        == "NOT_FOUND"
    )
    await create_push_channel(bob, **http_channel_input(receiver, title="Bob's"))
    await deliver_to_mailbox(bob, "His")
    await push_until_idle(make_push_worker(ada.environment))
    assert [request.headers["title"] for request in receiver.requests] == ["Bob's"]
    assert (await ada(DELETE_MUTATION, refs=[{"id": channel_id}]))["pushChannelDelete"][
        "deletedIds"
    ] == [channel_id]
    assert (await ada(node_query, id=channel_id))["node"] is None


async def test_admin_sets_channels_of_users_and_security_log_has_it(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient, receiver: WebhookReceiver
) -> None:
    payload = await run_push_channel_set(
        root,
        **http_channel_input(
            receiver, users={"domains": [{"name": "example.org"}]}, title="{TO_ADDRESS}"
        ),
    )
    assert [shown_channel["user"]["username"] for shown_channel in payload["pushChannels"]] == [
        "ada",
        "bob",
    ]
    security_log_query = "{ viewer { user { authLog { nodes { action by } } } } }"
    (entry,) = (await ada(security_log_query))["viewer"]["user"]["authLog"]["nodes"]
    assert entry["action"] == "PUSH_CHANNEL_SET"
    assert entry["by"]
    for client in (ada, bob):
        await deliver_to_mailbox(client, "Hello", To=client.address)
    await push_until_idle(make_push_worker(ada.environment))
    titles = sorted(request.headers["title"] for request in receiver.requests)
    assert titles == ["ada@example.org", "bob@example.org"]


async def test_push_permission_is_required_of_users_and_admins(
    ada: GraphQLClient, environment: Environment, receiver: WebhookReceiver
) -> None:
    client_without_permission = await make_client(environment, ada.http, "bare", permissions=[])
    mutation = """mutation { pushChannelSet(input: {}) { errors { ... on ForbiddenError {
      requires } } } }"""
    errors = (await client_without_permission(mutation))["pushChannelSet"]["errors"]
    assert errors == [{"requires": UserPermission.PUSH_CHANNELS}]
    fields = http_channel_input(receiver, users={"usernames": ["ada"]})
    login_as_admin = await make_domain_admin(
        environment, ada.http, "over", [AdminPermission.IMPERSONATE]
    )
    assert paths_and_constraints(await run_push_channel_set(login_as_admin, **fields)) == [
        ([], "FORBIDDEN")
    ]
    push_admin = await make_domain_admin(
        environment, ada.http, "half", [AdminPermission.PUSH_CHANNELS]
    )
    assert paths_and_constraints(await run_push_channel_set(push_admin, **fields)) == [
        ([], "FORBIDDEN")
    ]
    permissions = [AdminPermission.PUSH_CHANNELS, AdminPermission.IMPERSONATE]
    full_admin = await make_domain_admin(environment, ada.http, "under", permissions)
    assert paths_and_constraints(await run_push_channel_set(full_admin, **fields)) == []
    channels_query = 'query { user(by: {username: "ada"}) { pushChannels { kind } } }'
    assert (await login_as_admin(channels_query))["user"]["pushChannels"] == []
    assert (await full_admin(channels_query))["user"]["pushChannels"] == [{"kind": "HTTP"}]


async def test_channels_are_listed_with_constant_statements(
    ada: GraphQLClient,
    root: GraphQLClient,
    environment: Environment,
    receiver: WebhookReceiver,
    statements: list[str],
) -> None:
    text = """{ users(first: 50) { nodes { username pushChannels { kind user { username }
      mailboxes { path } } } } }"""
    fields = http_channel_input(
        receiver, users={"domains": [{"name": "example.org"}]}, mailboxes=[{"path": "INBOX"}]
    )
    await run_push_channel_set(root, **fields)

    async def count_statements() -> int:
        await root(text)
        del statements[:]
        users = (await root(text))["users"]["nodes"]
        assert all(user["pushChannels"][0]["mailboxes"] for user in users)
        return len(statements)

    expected_count = await count_statements()
    for n in range(19):
        await make_client(environment, ada.http, f"user{n}")
    await run_push_channel_set(root, **fields)
    assert await count_statements() == expected_count
