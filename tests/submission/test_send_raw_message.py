"""Messages handed in whole, quoted, passed on whole, and encrypted to whoever gets them."""

import email
from email import policy
from typing import Any

import pytest

from graph.types import global_ids
from models.runtime.environment import Environment
from models.users.roles import Scope
from tests.conftest import Client, make_key, raw_message, receive
from tests.support.accounts.openpgp_keys import opened, pair_of, public_of
from tests.support.accounts.user_operations import change, run
from tests.support.mail_servers.queue_worker import bodies, relay, settled, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening

SENT = """submission { id envelopeFrom recipients { recipient } }
  message { subject text html metaData bcc { address } attachments { filename contentType } }
  warnings { code }"""
TO = {"to": [{"address": "carol@example.net"}]}
RAW = "From: ada@example.org\nTo: Carol <carol@example.net>\nBcc: dave@example.net\n\nHi.\n.\n"
pytestmark = pytest.mark.usefixtures("examined")


async def send(client: Client, **given: Any) -> Any:
    return await run(client, "messageSend", SENT, **given)


def codes(done: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in done["errors"]]


def parsed(raw: bytes) -> Any:
    return email.message_from_bytes(raw, policy=policy.SMTP)


# whole messages


async def test_a_whole_message_goes_to_whom_it_names(ada: Client, world: Environment) -> None:
    async with listening(Server()) as there, working(world, relay(there)):
        done = await send(ada, raw=RAW, metaData={"campaign": 7})
        assert done["errors"] == []
        await settled(world, global_ids.decode("Submission", done["submission"]["id"]))
    assert done["message"]["metaData"] == {"campaign": 7}
    assert done["message"]["bcc"] == [{"address": "dave@example.net"}]
    (mail,) = there.mails
    assert sorted(mail.to) == ["carol@example.net", "dave@example.net"]
    assert b"Bcc" not in mail.raw
    assert b"\r\nDate: Tue, 01 Jan 2030 00:00:00 +0000\r\n" in mail.raw
    assert b"Message-ID: <" in mail.raw
    given = {"to": [{"address": "erin@example.net"}]}
    done = await send(ada, raw=RAW, envelope=given, sendTime="2030-01-02T00:00:00Z")
    assert done["submission"]["recipients"] == [{"recipient": "erin@example.net"}]
    assert b"Date: Wed, 02 Jan 2030" in (await bodies(world))[1]


@pytest.mark.parametrize(
    ("raw", "code"),
    [
        (RAW.replace("ada@", "bob@"), "FORBIDDEN_OPERATION"),
        ("Sender: bob@example.org\n" + RAW, "FORBIDDEN_OPERATION"),
        ("From: ada@example.org\n" + RAW, "VALIDATION"),
        (RAW.replace("From: ada@example.org\n", ""), "VALIDATION"),
        (RAW.replace("carol@example.net", "carol@exa mple.net"), "VALIDATION"),
        (RAW.replace("carol@example.net", "carol@"), "VALIDATION"),
        (RAW.replace("carol@example.net", "carol"), "VALIDATION"),
        (RAW.replace("Carol <carol@example.net>", "carol"), "VALIDATION"),
        ("%%%", "VALIDATION"),
    ],
)
async def test_a_whole_message_that_may_not_go_does_not(
    ada: Client, bob: Client, world: Environment, raw: str, code: str
) -> None:
    assert bob.user
    assert [one for one, _ in codes(await send(ada, raw=raw))] == [code]
    assert await bodies(world) == []


async def test_a_whole_message_has_all_its_fields(ada: Client) -> None:
    for given in (TO, {"text": "x"}, {"template": {"a": 1}}, {"encrypt": True}):
        assert codes(await send(ada, raw=RAW, **given)) == [("VALIDATION", ["raw"])]


async def test_the_envelope_is_asked_for_too(ada: Client, bob: Client) -> None:
    assert bob.user
    given = {"from": {"address": "bob@example.org"}}
    done = await send(ada, raw=RAW, envelope=given)
    assert codes(done) == [("FORBIDDEN_OPERATION", ["envelope", "from"])]


# quoted, and passed on


HTML = raw_message(
    "Ponds",
    body="<p>See <b>this</b></p><script>alert(1)</script>"
    '<img src="http://tracker.example/x.png"><img src="cid:a@b">',
    MIME_Version="1.0",
    Content_Type="text/html",
)


async def reference(client: Client, raw: bytes, action: str, **more: Any) -> dict[str, Any]:
    placed = await receive(client, raw)
    return {
        "message": {"id": global_ids.encode("Message", placed.message_id)},
        "action": action,
        **more,
    }


async def test_an_answer_quotes_line_by_line(ada: Client) -> None:
    long = "word " * 40
    raw = raw_message("Ponds", body=f"One.\r\n> Two.\r\n{long}\r\n\r\n-- \r\nCarol\r\n")
    to = await reference(ada, raw, "REPLY", quote="BELOW")
    done = await send(ada, text="Yes.", reference=to)
    text = done["message"]["text"].replace("\r\n", "\n")
    assert text.startswith("Yes.\n\nOn Tue, 01 Jan 2030 10:00:00 +0000, Carol <carol@")
    assert "\n> One.\n>> Two.\n> word word" in text
    assert all(len(line) <= 78 for line in text.split("\n")[3:])
    assert "-- " not in text
    above = {**to, "quote": "ABOVE"}
    text = (await send(ada, text="Yes.", reference=above))["message"]["text"]
    assert text.rstrip().endswith("Yes.")
    plain = await send(ada, text="Yes.", reference={**to, "quote": "NONE"})
    assert plain["message"]["text"].strip() == "Yes."


async def test_what_is_quoted_as_html_is_safe(ada: Client, world: Environment) -> None:
    to = await reference(ada, HTML, "REPLY", quote="BELOW")
    done = await send(ada, html="<body><p>Yes.</p></body>", reference=to)
    assert done["errors"] == []
    (raw,) = await bodies(world)
    page = parsed(raw).get_body(("html",)).get_content()
    assert "<script" not in page
    assert "tracker.example" not in page
    assert '<blockquote type="cite"' in page
    assert page.index("Yes.") < page.index("this")
    text = parsed(raw).get_body(("plain",)).get_content()
    assert "> See this" in text


async def test_a_forward_says_whose_it_was(ada: Client) -> None:
    to = await reference(ada, raw_message("Ponds"), "FORWARD", quote="BELOW")
    done = await send(ada, **TO, text="FYI", reference=to)
    text = done["message"]["text"].replace("\r\n", "\n")
    assert done["message"]["subject"] == "Fwd: Ponds"
    assert "From: Carol <carol@example.com>\nDate: Tue, 01 Jan 2030" in text
    assert "\nSubject: Ponds\nTo: ada@example.org\n\nHi there." in text


@pytest.mark.parametrize("body", ["Hi there.", "Grüße", "x" * 2000])
async def test_a_message_goes_along_whole(ada: Client, world: Environment, body: str) -> None:
    raw = raw_message("Ponds: a/b", body=body)
    to = await reference(ada, raw, "FORWARD", includeMessage=True)
    done = await send(ada, **TO, text="FYI", reference=to)
    assert done["errors"] == []
    sent = (await bodies(world))[0]
    assert sent.isascii()
    assert all(len(line) <= 998 for line in sent.split(b"\r\n"))
    (file,) = list(parsed(sent).iter_attachments())
    assert file.get_content_type() == "message/rfc822"
    inner = file.get_content()
    assert inner["Subject"] == "Ponds: a/b"
    assert inner["Message-ID"] == parsed(raw)["Message-ID"]
    if body == "Hi there.":
        assert b"Subject: Ponds: a/b\r\n" in sent
        assert inner.get_content().strip() == body


async def test_who_may_only_send_quotes_nothing(ada: Client, world: Environment) -> None:
    to = await reference(ada, raw_message("Ponds"), "REPLY")
    scopes = [Scope.SUBMIT]
    secret = await make_key(world, "sender", user_id=ada.user.id, role=ada.user.role, scopes=scopes)
    sender = Client(ada.http, world, ada.user, secret)
    document = """mutation ($input: MessageSendInput!) { messageSend(input: $input) {
      errors { code path } } }"""
    for more in ({"quote": "BELOW"}, {"includeMessage": True}, {"attachments": {"all": True}}):
        given = {"text": "x", "reference": {**to, **more}}
        (error,) = (await sender(document, input=given))["messageSend"]["errors"]
        assert error["code"] == "FORBIDDEN"


async def test_others_messages_are_not_quoted(ada: Client, bob: Client) -> None:
    to = await reference(ada, raw_message("Secret"), "REPLY", quote="BELOW")
    for more in ({}, {"includeMessage": True}, {"attachments": {"all": True}}):
        done = await send(bob, **TO, text="x", reference={**to, **more})
        assert codes(done) == [("NOT_FOUND", ["reference", "message"])]


# encrypted


async def test_it_is_encrypted_to_all_whose_keys_are_known(
    ada: Client, bob: Client, world: Environment
) -> None:
    mine, theirs = pair_of("Ada <ada@example.org>"), pair_of("Bob <bob@example.org>")
    to = {"to": [{"address": bob.address}], "subject": "x", "text": "A secret.", "encrypt": True}
    assert codes(await send(ada, **to)) == [("VALIDATION", ["encrypt"])]
    assert (await change(bob, pubKey=public_of(theirs)))[1] == []
    done = await send(ada, **to)
    assert done["errors"] == []
    assert "A secret." in done["message"]["text"]  # Ada has no key: her copy is readable
    (raw,) = await bodies(world)
    assert b"A secret." not in raw
    assert b"A secret." in opened(raw, theirs)
    assert (await change(ada, pubKey=public_of(mine)))[1] == []
    assert "A secret." not in ((await send(ada, **to))["message"]["text"] or "")
    raw = (await bodies(world))[1]
    assert b"A secret." in opened(raw, mine)
    outside = {**to, "cc": TO["to"]}
    assert codes(await send(ada, **outside)) == [("VALIDATION", ["encrypt"])]
    assert codes(await send(ada, **{**to, "bcc": TO["to"]})) == [("VALIDATION", ["bcc"])]
