"""Test raw messages, quotes, attached originals, and OpenPGP encryption of sent mail."""

import email
from email import policy
from typing import Any

import pytest

from graph.types import global_ids
from models.runtime.environment import Environment
from models.users.roles import Scope
from tests.conftest import GraphQLClient, deliver_to, make_api_key, raw_message
from tests.support.accounts.openpgp_keys import armored_public_key, decrypt_message, make_secret_key
from tests.support.accounts.user_operations import execute_mutation, try_update_users
from tests.support.case_loop import each_case
from tests.support.mail_servers.queue_worker import (
    load_queued_messages,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server

SEND_FIELDS = """submissions { id envelopeFrom recipients { recipient } }
  messages { subject text html metadata bcc { address } attachments { filename contentType } }
  warnings { code }"""
TO_CAROL = {"to": [{"address": "carol@example.net"}]}
RAW_MESSAGE = (
    "From: ada@example.org\nTo: Carol <carol@example.net>\nBcc: dave@example.net\n\nHi.\n.\n"
)
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def send_message(client: GraphQLClient, **fields: Any) -> Any:
    return await execute_mutation(client, "messageSend", SEND_FIELDS, **fields)


def error_codes_and_paths(answer: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in answer["errors"]]


def parse_message(raw: bytes) -> Any:
    return email.message_from_bytes(raw, policy=policy.SMTP)


async def test_raw_message_goes_to_its_recipients(
    ada: GraphQLClient, environment: Environment
) -> None:
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        answer = await send_message(ada, raw=RAW_MESSAGE, metadata={"campaign": 7})
        assert answer["errors"] == []
        await wait_until_tried(
            environment, global_ids.decode("Submission", answer["submissions"][0]["id"])
        )
    assert answer["messages"][0]["metadata"] == {"campaign": 7}
    assert answer["messages"][0]["bcc"] == [{"address": "dave@example.net"}]
    (received,) = server.messages
    assert sorted(received.to) == ["carol@example.net", "dave@example.net"]
    assert b"Bcc" not in received.raw
    assert b"\r\nDate: Tue, 01 Jan 2030 00:00:00 +0000\r\n" in received.raw
    assert b"Message-ID: <" in received.raw
    envelope = {"to": [{"address": "erin@example.net"}]}
    answer = await send_message(
        ada, raw=RAW_MESSAGE, envelope=envelope, sendAt="2030-01-02T00:00:00Z"
    )
    assert answer["submissions"][0]["recipients"] == [{"recipient": "erin@example.net"}]
    assert b"Date: Wed, 02 Jan 2030" in (await load_queued_messages(environment))[1]


INVALID_RAW_MESSAGES: list[tuple[str, str]] = [
    (RAW_MESSAGE.replace("ada@", "bob@"), "FORBIDDEN_OPERATION"),
    ("Sender: bob@example.org\n" + RAW_MESSAGE, "FORBIDDEN_OPERATION"),
    ("From: ada@example.org\n" + RAW_MESSAGE, "VALIDATION"),
    (RAW_MESSAGE.replace("From: ada@example.org\n", ""), "VALIDATION"),
    (RAW_MESSAGE.replace("carol@example.net", "carol@exa mple.net"), "VALIDATION"),
    (RAW_MESSAGE.replace("carol@example.net", "carol@"), "VALIDATION"),
    (RAW_MESSAGE.replace("carol@example.net", "carol"), "VALIDATION"),
    (RAW_MESSAGE.replace("Carol <carol@example.net>", "carol"), "VALIDATION"),
    ("%%%", "VALIDATION"),
]


async def test_invalid_raw_message_is_refused(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    assert bob.user
    for case in each_case(INVALID_RAW_MESSAGES):
        with case as (raw, code):
            assert [
                error_code
                for error_code, _ in error_codes_and_paths(await send_message(ada, raw=raw))
            ] == [code]
            assert await load_queued_messages(environment) == []


async def test_raw_message_excludes_other_fields(ada: GraphQLClient) -> None:
    for arguments in (TO_CAROL, {"text": "x"}, {"template": {"a": 1}}, {"encrypt": True}):
        assert error_codes_and_paths(await send_message(ada, raw=RAW_MESSAGE, **arguments)) == [
            ("VALIDATION", ["raw"])
        ]


async def test_foreign_envelope_sender_of_raw_message_is_refused(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    assert bob.user
    envelope = {"from": {"address": "bob@example.org"}}
    answer = await send_message(ada, raw=RAW_MESSAGE, envelope=envelope)
    assert error_codes_and_paths(answer) == [("FORBIDDEN_OPERATION", ["envelope", "from"])]


HTML_MESSAGE = raw_message(
    "Ponds",
    body="<p>See <b>this</b></p><script>alert(1)</script>"
    '<img src="http://tracker.example/x.png"><img src="cid:a@b">',
    MIME_Version="1.0",
    Content_Type="text/html",
)


async def receive_and_reference(
    client: GraphQLClient, raw: bytes, action: str, **extra: Any
) -> dict[str, Any]:
    inserted = await deliver_to(client, raw)
    return {
        "message": {"id": global_ids.encode("Message", inserted.message_id)},
        "relation": action,
        **extra,
    }


async def test_reply_quotes_html_with_percent_encoded_image(ada: GraphQLClient) -> None:
    raw = (
        b"From: carol@example.com\r\nSubject: Picture\r\nMIME-Version: 1.0\r\n"
        b"Content-Type: multipart/related; boundary=r\r\n\r\n--r\r\nContent-Type: text/html\r\n\r\n"
        b"<p>See <img src='cid:dot%40here'></p>\r\n--r\r\nContent-Type: image/png\r\n"
        b"Content-ID: <dot@here>\r\n\r\npicture\r\n--r--\r\n"
    )
    source_reference = await receive_and_reference(ada, raw, "REPLY", quote="BELOW")
    answer = await send_message(ada, html="<p>Yes.</p>", original=source_reference)
    assert answer["errors"] == []
    (raw_sent,) = await load_queued_messages(ada.environment)
    assert b"<dot@here>" in raw_sent


async def test_reply_quotes_original_text(ada: GraphQLClient) -> None:
    long_line = "word " * 40
    raw = raw_message("Ponds", body=f"One.\r\n> Two.\r\n{long_line}\r\n\r\n-- \r\nCarol\r\n")
    source_reference = await receive_and_reference(ada, raw, "REPLY", quote="BELOW")
    answer = await send_message(ada, text="Yes.", original=source_reference)
    text = answer["messages"][0]["text"].replace("\r\n", "\n")
    assert text.startswith("Yes.\n\nOn Tue, 01 Jan 2030 10:00:00 +0000, Carol <carol@")
    assert "\n> One.\n>> Two.\n> word word" in text
    assert all(len(line) <= 78 for line in text.split("\n")[3:])
    assert "-- " not in text
    quote_above = {**source_reference, "quote": "ABOVE"}
    text = (await send_message(ada, text="Yes.", original=quote_above))["messages"][0]["text"]
    assert text.rstrip().endswith("Yes.")
    without_quote = await send_message(
        ada, text="Yes.", original={**source_reference, "quote": "NONE"}
    )
    assert without_quote["messages"][0]["text"].strip() == "Yes."


async def test_quoted_html_is_sanitized(ada: GraphQLClient, environment: Environment) -> None:
    source_reference = await receive_and_reference(ada, HTML_MESSAGE, "REPLY", quote="BELOW")
    answer = await send_message(ada, html="<body><p>Yes.</p></body>", original=source_reference)
    assert answer["errors"] == []
    (raw,) = await load_queued_messages(environment)
    page = parse_message(raw).get_body(("html",)).get_content()
    assert "<script" not in page
    assert "tracker.example" not in page
    assert '<blockquote type="cite"' in page
    assert page.index("Yes.") < page.index("this")
    text = parse_message(raw).get_body(("plain",)).get_content()
    assert "> See this" in text


async def test_forward_quotes_header_of_original(ada: GraphQLClient) -> None:
    source_reference = await receive_and_reference(
        ada, raw_message("Ponds"), "FORWARD", quote="BELOW"
    )
    answer = await send_message(ada, **TO_CAROL, text="FYI", original=source_reference)
    text = answer["messages"][0]["text"].replace("\r\n", "\n")
    assert answer["messages"][0]["subject"] == "Fwd: Ponds"
    assert "From: Carol <carol@example.com>\nDate: Tue, 01 Jan 2030" in text
    assert "\nSubject: Ponds\nTo: ada@example.org\n\nHi there." in text


@pytest.mark.parametrize("body", ["Hi there.", "Grüße", "x" * 2000])
async def test_forward_attaches_whole_original(
    ada: GraphQLClient, environment: Environment, body: str
) -> None:
    raw = raw_message("Ponds: a/b", body=body)
    source_reference = await receive_and_reference(ada, raw, "FORWARD", includeMessage=True)
    answer = await send_message(ada, **TO_CAROL, text="FYI", original=source_reference)
    assert answer["errors"] == []
    sent = (await load_queued_messages(environment))[0]
    assert sent.isascii()
    assert all(len(line) <= 998 for line in sent.split(b"\r\n"))
    (file,) = list(parse_message(sent).iter_attachments())
    assert file.get_content_type() == "message/rfc822"
    attached_message = file.get_content()
    assert attached_message["Subject"] == "Ponds: a/b"
    assert attached_message["Message-ID"] == parse_message(raw)["Message-ID"]
    if body == "Hi there.":
        assert b"Subject: Ponds: a/b\r\n" in sent
        assert attached_message.get_content().strip() == body


async def test_submit_only_key_cannot_quote(ada: GraphQLClient, environment: Environment) -> None:
    source_reference = await receive_and_reference(ada, raw_message("Ponds"), "REPLY")
    scopes = [Scope.SUBMIT]
    secret = await make_api_key(
        environment, "sender", user_id=ada.user.id, role=ada.user.role, scopes=scopes
    )
    sender = GraphQLClient(ada.http, environment, ada.user, secret)
    document = """mutation ($input: MessageSendInput!) { messageSend(input: $input) {
      errors { code path } } }"""
    for extra in ({"quote": "BELOW"}, {"includeMessage": True}, {"attachments": {"all": True}}):
        arguments = {"text": "x", "original": {**source_reference, **extra}}
        (error,) = (await sender(document, input=arguments))["messageSend"]["errors"]
        assert error["code"] == "FORBIDDEN"


async def test_foreign_message_cannot_be_quoted(ada: GraphQLClient, bob: GraphQLClient) -> None:
    source_reference = await receive_and_reference(
        ada, raw_message("Secret"), "REPLY", quote="BELOW"
    )
    for extra in ({}, {"includeMessage": True}, {"attachments": {"all": True}}):
        answer = await send_message(
            bob, **TO_CAROL, text="x", original={**source_reference, **extra}
        )
        assert error_codes_and_paths(answer) == [("NOT_FOUND", ["original", "message"])]


async def test_message_is_encrypted_to_all_known_keys(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    ada_key = make_secret_key("Ada <ada@example.org>")
    bob_key = make_secret_key("Bob <bob@example.org>")
    message_fields = {
        "to": [{"address": bob.address}],
        "subject": "x",
        "text": "A secret.",
        "encrypt": True,
    }
    assert error_codes_and_paths(await send_message(ada, **message_fields)) == [
        ("VALIDATION", ["encrypt"])
    ]
    assert (await try_update_users(bob, openpgpPublicKey=armored_public_key(bob_key)))[1] == []
    answer = await send_message(ada, **message_fields)
    assert answer["errors"] == []
    assert "A secret." in answer["messages"][0]["text"]  # Ada has no key: her copy is readable
    (raw,) = await load_queued_messages(environment)
    assert b"A secret." not in raw
    assert b"A secret." in decrypt_message(raw, bob_key)
    assert (await try_update_users(ada, openpgpPublicKey=armored_public_key(ada_key)))[1] == []
    assert "A secret." not in (
        (await send_message(ada, **message_fields))["messages"][0]["text"] or ""
    )
    raw = (await load_queued_messages(environment))[1]
    assert b"A secret." in decrypt_message(raw, ada_key)
    with_unknown_key = {**message_fields, "cc": TO_CAROL["to"]}
    assert error_codes_and_paths(await send_message(ada, **with_unknown_key)) == [
        ("VALIDATION", ["encrypt"])
    ]
    assert error_codes_and_paths(
        await send_message(ada, **{**message_fields, "bcc": TO_CAROL["to"]})
    ) == [("VALIDATION", ["bcc"])]
