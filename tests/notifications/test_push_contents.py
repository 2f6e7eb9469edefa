"""Pushes of received messages: contents and selection."""

import json
from email.header import decode_header, make_header

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from graph.types import global_ids
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, ManualClock
from tests.support.case_loop import each_case
from tests.support.mail_servers.smtp_and_dns_servers import server_tls_context, trusting_tls_context
from tests.support.operations.bulk_operations import run_message_mutation
from tests.support.operations.push_receivers import (
    PUBLIC_KEY_QUERY,
    PushSubscriber,
    allow_local_pushes,
    create_push_channel,
    decode_base64url,
    decode_form,
    deliver_to_mailbox,
    http_channel_input,
    load_push_channel,
    make_push_worker,
    push_until_idle,
    received_texts,
    receiver,
)
from tests.support.servers.webhook_receiver import WebhookReceiver, run_webhook_receiver

__all__ = ["receiver"]


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


async def test_priority_filter_pushes_only_urgent_messages(
    ada: GraphQLClient, receiver: WebhookReceiver
) -> None:
    await create_push_channel(ada, key="k", token="t", highPriorityOnly=True, passPriority=True)  # noqa: S106
    cases: list[dict[str, str]] = [
        {"X-Priority": "1 (Highest)"},
        {"Importance": "High"},
        {"Priority": "urgent"},
    ]
    for case in each_case(cases):
        with case as priority_header:
            receiver.requests.clear()
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
