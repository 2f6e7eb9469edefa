"""Push channels: who may have which, what they are told, and in which words."""

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
from tests.conftest import Client, Clock, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.mail_servers.smtp_and_dns_servers import server_tls, trust
from tests.support.operations.bulk_operations import call
from tests.support.operations.push_receivers import (
    Browser,
    bare,
    channel,
    come,
    form,
    http,
    loose,
    made,
    pump,
    raw_of,
    set_,
    texts,
    worker_of,
)
from tests.support.servers.webhook_receiver import Receiver, receiving
from tests.support.stores.store_snapshot import everything

DELETE = """mutation ($ids: [ID!]!) { pushChannelDelete(input: {ids: $ids}) {
  deletedIds errors { code } } }"""
TEST = """mutation ($ids: [ID!]!) { pushChannelTest(input: {ids: $ids}) {
  channels { id } errors { code } } }"""
PUBLIC = "{ pushPublicKey }"


@pytest.fixture
async def receiver(world: Environment) -> AsyncIterator[Receiver]:
    async with receiving() as one:
        loose(world, pushover_url=f"http://127.0.0.1:{one.port}/1/messages.json")
        yield one


def codes(payload: Any) -> list[Any]:
    return [(e["path"], e.get("constraint") or e["code"]) for e in payload["errors"]]


async def test_mail_that_comes_is_told_by_pushover(
    ada: Client, receiver: Receiver, clock: Clock
) -> None:
    await made(ada, key="user-key", token="app-token")  # noqa: S106
    await come(ada, "Hello", From="Bob <bob@example.net>")
    await pump(worker_of(ada.world))
    (got,) = receiver.got
    assert got.path == "/1/messages.json"
    assert form(got) == {
        "token": "app-token", "user": "user-key", "title": "Bob", "message": "Hello",
        "priority": "0",
    }  # fmt: skip
    one = await channel(ada)
    assert (one["lastError"], one["lastPushAt"]) == (None, "2030-01-01T00:00:00Z")
    clock.tick(hours=1)
    await pump(worker_of(ada.world))
    assert len(receiver.got) == 1


@pytest.mark.parametrize(
    ("contact", "told"),
    [("mailto:ops@example.org", "mailto:ops@example.org"), ("", "mailto:postmaster@mx")],
)
async def test_a_browser_can_read_what_it_is_sent_and_knows_who_sends(
    ada: Client, world: Environment, clock: Clock, contact: str, told: str
) -> None:
    loose(world, push_contact=contact, hostname="mx")
    async with receiving(server_tls()) as service:
        browser = Browser(service.port)
        await made(ada, kind="WEB_PUSH", endpoint=browser.subscription)
        placed = await come(ada, "Grüße", From="Bob <bob@example.net>")
        await pump(worker_of(world, trusted_context=trust()))
    (got,) = service.got
    assert browser.read(got) == {
        "title": "Bob", "body": "Grüße", "count": 1,
        "message": global_ids.encode("Message", placed.message_id),
    }  # fmt: skip
    assert (got.headers["ttl"], got.headers["urgency"]) == ("86400", "normal")
    scheme, _, parts = got.headers["authorization"].partition(" ")
    said = dict(part.split("=", 1) for part in parts.split(","))
    assert scheme == "vapid"
    assert said["k"] == (await ada(PUBLIC))["pushPublicKey"]
    head, claims, signature = said["t"].split(".")
    meant = json.loads(raw_of(claims))
    assert meant["aud"] == f"https://127.0.0.1:{service.port}"
    assert meant["sub"] == told
    assert 0 < meant["exp"] - clock().timestamp() <= 24 * 3600
    raw = raw_of(signature)
    halves = int.from_bytes(raw[:32]), int.from_bytes(raw[32:])
    key = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), raw_of(said["k"]))
    key.verify(
        encode_dss_signature(*halves), f"{head}.{claims}".encode(), ec.ECDSA(hashes.SHA256())
    )


async def test_ntfy_is_told_in_its_own_way(ada: Client, receiver: Receiver) -> None:
    await made(ada, **http(receiver, token="tk_1", title="{SENDER_NAME}: Grüße"))  # noqa: S106
    await come(ada, "Hello", From="Zoë <zoe@example.net>")
    await pump(worker_of(ada.world))
    (got,) = receiver.got
    assert (got.path, got.raw) == ("/topic", b"Hello")
    assert got.headers["authorization"] == "Bearer tk_1"
    assert got.headers["priority"] == "default"
    assert got.headers["title"].startswith("=?utf-8?b?")
    assert str(make_header(decode_header(got.headers["title"]))) == "Zoë: Grüße"


async def test_places_are_filled_in_once_and_nothing_gets_out_of_a_field(
    ada: Client, receiver: Receiver
) -> None:
    title = "{SENDER} {SENDER_ADDRESS} {NOTHING}"
    text = "{SUBJECT}|{TO_NAME}|{TO_ADDRESS}|{MSG_ID}"
    await made(ada, **http(receiver, title=title, text=text))
    await come(
        ada,
        "{SENDER} =?utf-8?q?a=0D=0AX-Evil=3A_1?=",
        From="=?utf-8?q?Bob=0D=0AX-Evil=3A_1?= <bob@example.net>",
        To="Ada <ada@example.org>",
        Message_ID="<1@example.net>",
    )
    await pump(worker_of(ada.world))
    (got,) = receiver.got
    assert "x-evil" not in got.headers
    assert got.headers["title"].endswith("bob@example.net {NOTHING}")
    subject, *others = got.raw.decode().split("|")
    assert subject.startswith("{SENDER} a")
    assert others == ["Ada", "ada@example.org", "<1@example.net>"]


async def test_only_what_is_wanted_is_told(ada: Client, receiver: Receiver) -> None:
    await made(
        ada,
        **http(receiver, senders=["bob@example.net", "@work.example"], sendersRegex="/^b.b@x/i"),
    )
    for sender in ("bob@example.net", "eve@example.net", "any@work.example", "BAB@xy.example"):
        await come(ada, f"From {sender}", From=sender)
        await pump(worker_of(ada.world))
    assert texts(receiver) == [
        "From bob@example.net", "From any@work.example", "From BAB@xy.example",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "urgent", [{"X-Priority": "1 (Highest)"}, {"Importance": "High"}, {"Priority": "urgent"}]
)
async def test_what_is_urgent_may_be_told_alone_and_with_priority(
    ada: Client, receiver: Receiver, urgent: dict[str, str]
) -> None:
    await made(ada, key="k", token="t", onlyPriority=True, evaluatePriority=True)  # noqa: S106
    await come(ada, "Later", **{"X-Priority": "3"})
    await come(ada, "Now", **urgent)
    await pump(worker_of(ada.world))
    assert [(form(got)["message"], form(got)["priority"]) for got in receiver.got] == [("Now", "1")]


async def test_folders_junk_and_what_is_read_or_put_in(ada: Client, receiver: Receiver) -> None:
    create = """mutation ($p: [String!]!) { mailboxCreate(input: {paths: $p}) {
      mailboxes { id } errors { code } } }"""
    (lists,) = (await ada(create, p=["Lists"]))["mailboxCreate"]["mailboxes"]
    await made(ada, **http(receiver))
    worker = worker_of(ada.world)
    for path in ("Lists", "Junk", "INBOX"):
        await come(ada, f"To {path}", into=path)
        await pump(worker)
    assert texts(receiver) == ["To INBOX"]
    await made(ada, kind="HTTP", mailboxes=[{"path": "Lists"}])
    assert (await channel(ada))["mailboxes"] == [{"path": "Lists"}]
    for path in ("Lists", "INBOX"):
        await come(ada, f"Again to {path}", into=path)
        await pump(worker)
    assert texts(receiver) == ["To INBOX", "Again to Lists"]
    gone = (
        "mutation ($id: ID!) { mailboxDelete(input: {mailboxes: [{id: $id}]}) { errors { code } } }"
    )
    assert (await ada(gone, id=lists["id"]))["mailboxDelete"]["errors"] == []
    assert (await channel(ada))["mailboxes"] == []
    read = await come(ada, "Read at once")
    await call(
        ada,
        "messageUpdate",
        select={"ids": [global_ids.encode("Message", read.message_id)]},
        set={"seen": True},
    )
    await come(ada, "Last")
    await pump(worker)
    assert texts(receiver)[2:] == ["Last"]


async def test_muted_conversations_and_what_is_put_in_are_not_told(
    ada: Client, receiver: Receiver
) -> None:
    await made(ada, **http(receiver))
    worker = worker_of(ada.world)
    await come(ada, "Talk", Message_ID="<t@example.net>")
    await pump(worker)
    threads = "{ viewer { user { messages { nodes { thread { id } } } } } }"
    (node,) = (await ada(threads))["viewer"]["user"]["messages"]["nodes"]
    mute = """mutation ($id: ID!) { threadUpdate(input: {ids: [$id], muted: true}) {
      errors { code } } }"""
    await ada(mute, id=node["thread"]["id"])
    await come(ada, "Re: Talk", In_Reply_To="<t@example.net>")
    upload = """mutation { messageUpload(input: {mailbox: {path: "INBOX"}, subject: "Put in",
      text: "x"}) { errors { code } } }"""
    assert (await ada(upload))["messageUpload"]["errors"] == []
    await pump(worker)
    assert texts(receiver) == ["Talk"]


async def test_a_burst_is_one_notice_that_names_nobody(
    ada: Client, receiver: Receiver, clock: Clock
) -> None:
    await made(ada, **http(receiver, title="Mail from {SENDER}"))
    worker = worker_of(ada.world)
    for n in range(12):
        await come(ada, f"No. {n}", From="bob@example.net")
    await pump(worker)
    assert texts(receiver) == ["12 new messages"]
    assert receiver.got[0].headers["title"] == "New mail"
    for n in range(10):
        await come(ada, f"Then {n}")
        await pump(worker)
    assert len(receiver.got) == 5  # of a minute
    clock.tick(seconds=61)
    await pump(worker)
    assert texts(receiver)[5:] == ["6 new messages"]


async def test_what_was_before_or_while_it_was_off_is_not_told(
    ada: Client, receiver: Receiver
) -> None:
    await come(ada, "Before")
    await made(ada, **http(receiver))
    worker = worker_of(ada.world)
    for active in (False, True):
        await made(ada, kind="HTTP", active=active)
        await come(ada, f"While {active}")
        await pump(worker)
    assert texts(receiver) == ["While True"]


async def test_a_sample_is_sent_even_where_it_is_off(
    ada: Client, bob: Client, receiver: Receiver
) -> None:
    key = await made(ada, **http(receiver, active=False, title="Ping"))
    assert (await bob(TEST, ids=[key]))["pushChannelTest"]["errors"] == [{"code": "NOT_FOUND"}]
    assert (await ada(TEST, ids=[key]))["pushChannelTest"]["errors"] == []
    await pump(worker_of(ada.world))
    await pump(worker_of(ada.world))
    (got,) = receiver.got
    assert (got.headers["title"], got.raw) == ("Ping", b"This is a test")
    assert (await channel(ada))["lastPushAt"] is not None


POINT = bare(b"\4" + b"\1" * 64)  # on no curve


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"kind": "PUSHOVER", "key": "k"}, [(["token"], "required")]),
        ({"kind": "HTTP"}, [(["endpoint"], "required")]),
        ({"kind": "HTTP", "endpoint": "https://x.example", "key": "k"}, [(["key"], "exclusive")]),
        ({"kind": "HTTP", "endpoint": "ftp://x.example"}, [(["endpoint"], "url")]),
        ({"kind": "HTTP", "endpoint": {"a": 1}}, [(["endpoint"], "format")]),
        ({"kind": "HTTP", "endpoint": "http://127.0.0.1/x"}, [(["endpoint"], "private")]),
        ({"kind": "HTTP", "endpoint": "https://db.internal/"}, [(["endpoint"], "private")]),
        ({"kind": "WEB_PUSH", "endpoint": "https://x.example"}, [(["endpoint"], "format")]),
        (
            {"kind": "WEB_PUSH", "endpoint": {"endpoint": "http://x.example", "keys": {}}},
            [(["endpoint"], "url")],
        ),
        (
            {
                "kind": "WEB_PUSH",
                "endpoint": {
                    "endpoint": "https://x.example",
                    "keys": {"p256dh": POINT, "auth": bare(b"a" * 16)},
                },
            },
            [(["endpoint"], "format")],
        ),
        (
            {"kind": "WEB_PUSH", "endpoint": {"endpoint": "https://[2600::1]/", "keys": {}}},
            [(["endpoint"], "url")],
        ),
        ({"key": "k\n", "token": "t"}, [(["key"], "format")]),
        ({"key": "k", "token": "t", "title": "x" * 251}, [(["title"], "length")]),
        ({"key": "k", "token": "t", "text": "a\tb"}, [(["text"], "pattern")]),
        ({"key": "k", "token": "t", "senders": ["@"]}, [(["senders"], "pattern")]),
        ({"key": "k", "token": "t", "senders": ["a.example"] * 101}, [(["senders"], "max")]),
        ({"key": "k", "token": "t", "sendersRegex": "(a"}, [(["sendersRegex"], "pattern")]),
        ({"key": "k", "token": "t", "sendersRegex": r"(a)\1"}, [(["sendersRegex"], "pattern")]),
        (
            {"key": "k", "token": "t", "title": "", "sendersRegex": "(?=a)"},
            [(["sendersRegex"], "pattern"), (["title"], "length")],
        ),
        (
            {"key": "k", "token": "t", "mailboxes": [{"path": "None"}]},
            [(["mailboxes"], "NOT_FOUND")],
        ),
    ],
)
async def test_what_is_wrong_is_said_and_nothing_kept(
    ada: Client, given: dict[str, Any], told: Any
) -> None:
    assert codes(await set_(ada, **given)) == told
    assert (await ada("{ viewer { user { pushChannels { id } } } }"))["viewer"]["user"] == {
        "pushChannels": []
    }


async def test_one_of_each_kind_and_it_is_changed_in_parts(ada: Client, receiver: Receiver) -> None:
    first = await made(ada, key="k1", token="t1", text="A", senders=["x.example"])  # noqa: S106
    payload = await set_(ada, key="k2", text=None, onlyPriority=True, senders=None)
    (shown,) = payload["channels"]
    assert shown["id"] == first
    assert (shown["text"], shown["onlyPriority"], shown["senders"]) == (None, True, [])
    await made(ada, key="k2", onlyPriority=False)
    await come(ada, "Hello")
    await pump(worker_of(ada.world))
    assert [form(receiver.got[0])[name] for name in ("user", "token")] == ["k2", "t1"]


async def test_secrets_lie_sealed_are_never_shown_and_are_sealed_anew(
    ada: Client, world: Environment, receiver: Receiver, root: Client
) -> None:
    given = http(receiver, token="tk_SECRET", users={"usernames": ["ada"]})  # noqa: S106
    payload = await set_(root, **given)
    await set_(ada, key="KEY-SECRET", token="t")  # noqa: S106
    public = (await ada(PUBLIC))["pushPublicKey"]
    assert len(raw_of(public)) == 65
    rows = str(await everything(world))
    for secret in ("SECRET", f"{receiver.port}/topic"):
        assert secret not in rows
        assert secret not in str(payload)
    other = SecretBox({**world.secret_box.keys, "newer": b"n" * 32})
    object.__setattr__(world, "secret_box", other)
    came = await secret_rotation.reencrypt_all(world)
    assert (came.reencrypted_count, came.failed_contexts) == (3, [])
    object.__setattr__(world, "secret_box", SecretBox({"newer": b"n" * 32}))
    await come(ada, "Hello")
    await pump(worker_of(world))
    assert len(receiver.got) == 2
    assert (await ada(PUBLIC))["pushPublicKey"] == public


async def test_another_user_sees_and_changes_nothing(
    ada: Client, bob: Client, receiver: Receiver
) -> None:
    key = await made(ada, **http(receiver))
    node = "query ($id: ID!) { node(id: $id) { ... on PushChannel { kind } } }"
    assert (await ada(node, id=key))["node"] == {"kind": "HTTP"}
    assert (await bob(node, id=key))["node"] is None
    assert (await bob(DELETE, ids=[key]))["pushChannelDelete"]["errors"] == [{"code": "NOT_FOUND"}]
    theirs = await set_(bob, **http(receiver, users={"usernames": ["ada"]}))
    assert codes(theirs)[0][1] == "NOT_FOUND"
    box = global_ids.encode("Mailbox", (await ada.box()).id)
    assert codes(await set_(bob, **http(receiver, mailboxes=[{"id": box}])))[0][1] == "NOT_FOUND"
    await made(bob, **http(receiver, title="Bob's"))
    await come(bob, "His")
    await pump(worker_of(ada.world))
    assert [got.headers["title"] for got in receiver.got] == ["Bob's"]
    assert (await ada(DELETE, ids=[key]))["pushChannelDelete"]["deletedIds"] == [key]
    assert (await ada(node, id=key))["node"] is None


async def test_administrators_set_many_and_their_users_hear_of_it(
    ada: Client, bob: Client, root: Client, receiver: Receiver
) -> None:
    payload = await set_(
        root, **http(receiver, users={"domains": ["example.org"]}, title="{TO_ADDRESS}")
    )
    assert [one["user"]["username"] for one in payload["channels"]] == ["ada", "bob"]
    log = "{ viewer { user { authLog { nodes { action by } } } } }"
    (entry,) = (await ada(log))["viewer"]["user"]["authLog"]["nodes"]
    assert entry["action"] == "push channel set"
    assert entry["by"]
    for client in (ada, bob):
        await come(client, "Hello", To=client.address)
    await pump(worker_of(ada.world))
    told = sorted(got.headers["title"] for got in receiver.got)
    assert told == ["ada@example.org", "bob@example.org"]


async def test_permissions_of_users_and_of_those_in_charge(
    ada: Client, world: Environment, receiver: Receiver
) -> None:
    bare_ = await make_client(world, ada.http, "bare", permissions=[])
    asked = """mutation { pushChannelSet(input: {}) { errors { ... on ForbiddenError {
      requires } } } }"""
    refused = (await bare_(asked))["pushChannelSet"]["errors"]
    assert refused == [{"requires": UserPermission.PUSHOVER}]
    given = http(receiver, users={"usernames": ["ada"]})
    without = await make_domain_admin(world, ada.http, "over", [AdminPermission.LOGIN_AS])
    assert codes(await set_(without, **given)) == [([], "FORBIDDEN")]
    half = await make_domain_admin(world, ada.http, "half", [AdminPermission.PUSHOVER])
    assert codes(await set_(half, **given)) == [([], "FORBIDDEN")]
    both = [AdminPermission.PUSHOVER, AdminPermission.LOGIN_AS]
    with_ = await make_domain_admin(world, ada.http, "under", both)
    assert codes(await set_(with_, **given)) == []
    shown = 'query { user(by: {username: "ada"}) { pushChannels { kind } } }'
    assert (await without(shown))["user"]["pushChannels"] == []
    assert (await with_(shown))["user"]["pushChannels"] == [{"kind": "HTTP"}]


async def test_listing_costs_the_same_however_many(
    ada: Client, root: Client, world: Environment, receiver: Receiver, statements: list[str]
) -> None:
    text = """{ users(first: 50) { nodes { username pushChannels { kind user { username }
      mailboxes { path } } } } }"""
    everybody = http(receiver, users={"domains": ["example.org"]}, mailboxes=[{"path": "INBOX"}])
    await set_(root, **everybody)

    async def cost() -> int:
        await root(text)
        del statements[:]
        found = (await root(text))["users"]["nodes"]
        assert all(one["pushChannels"][0]["mailboxes"] for one in found)
        return len(statements)

    one = await cost()
    for n in range(19):
        await make_client(world, ada.http, f"user{n}")
    await set_(root, **everybody)
    assert await cost() == one
