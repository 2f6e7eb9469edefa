"""Push channels: validation, secrets, permissions and lists."""

from typing import Any

from graph.types import global_ids
from models.runtime.environment import Environment
from models.runtime.secret_box import SecretBox
from models.users.roles import AdminPermission, UserPermission
from resolvers.admin import secret_rotation
from tests.conftest import GraphQLClient, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.case_loop import each_case
from tests.support.operations.push_receivers import (
    PUBLIC_KEY_QUERY,
    create_push_channel,
    decode_base64url,
    decode_form,
    deliver_to_mailbox,
    encode_base64url,
    http_channel_input,
    load_push_channel,
    make_push_worker,
    push_until_idle,
    receiver,
    run_push_channel_set,
)
from tests.support.servers.webhook_receiver import WebhookReceiver
from tests.support.stores.store_snapshot import snapshot_rows

__all__ = ["receiver"]
DELETE_MUTATION = """mutation ($refs: [PushChannelRef!]!) {
  pushChannelDelete(input: {pushChannels: $refs}) {
  deletedIds errors { code } } }"""
TEST_MUTATION = """mutation ($refs: [PushChannelRef!]!) {
  pushChannelTest(input: {pushChannels: $refs}) {
  pushChannels { id } errors { code } } }"""


def paths_and_constraints(payload: Any) -> list[Any]:
    return [(e["path"], e.get("constraint") or e["code"]) for e in payload["errors"]]


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


INVALID_CHANNELS: list[tuple[dict[str, Any], Any]] = [
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
]


async def test_invalid_channel_is_refused_and_not_stored(ada: GraphQLClient) -> None:
    for case in each_case(INVALID_CHANNELS):
        with case as (fields, expected):
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
    rotation = await secret_rotation.reencrypt_all_secrets(environment)
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
    security_log_query = "{ viewer { user { securityLog { nodes { action by } } } } }"
    (entry,) = (await ada(security_log_query))["viewer"]["user"]["securityLog"]["nodes"]
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
