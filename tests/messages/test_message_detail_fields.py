"""What GraphQL shows of a stored message beyond what its lists are made of."""

import base64
import re
import time
from datetime import timedelta
from typing import Any

import pytest

from graph.types import global_ids
from mail.delivery import local_delivery
from mail.delivery.listener_backend import LocalBackend
from mail.envelope.delivery_jobs import DeliveryJob, JobRecipient
from mail.storage.message_insert import InsertedMessage
from models.queue.tables import DeliveryState
from models.users.roles import Role
from tests.conftest import Client, make_client, raw_message, receive
from tests.support.accounts.key_value_operations import limit
from tests.support.mail import multipart_message
from tests.support.mail.multipart_message import RICH
from tests.support.operations.message_sources import upload

FORMS = """query ($id: ID!) { message(by: {id: $id}) {
  guid uid seq size virtualSize body envelopeImap bodyImap bodyStructureImap pop3Uidl
} }"""
CALENDAR = b"""BEGIN:VCALENDAR\r
METHOD:REQUEST\r
BEGIN:VEVENT\r
UID:lamp-1\r
SUMMARY:Gr\xc3\r
 \xbce\r
DTSTART;TZID=Europe/Berlin:20300701T100000\r
DURATION:PT1H\r
ORGANIZER;CN=Nora:mailto:nora@example.com\r
ATTENDEE:mailto:ada@example.org\r
END:VEVENT\r
END:VCALENDAR\r
"""


async def one(client: Client, key: int, fields: str) -> Any:
    """These fields of a message."""
    document = f"query ($id: ID!) {{ message(by: {{id: $id}}) {{ {fields} }} }}"
    return (await client(document, id=global_ids.encode("Message", key)))["message"]


async def test_a_message_is_told_in_the_forms_of_imap_and_pop3(ada: Client) -> None:
    raw = raw_message("Forms", Message_ID="<1@example.com>")
    placed = await receive(ada, raw)
    found = (await ada(FORMS, id=global_ids.encode("Message", placed.message_id)))["message"]
    assert found["uid"] == placed.uid
    assert found["pop3Uidl"] == found["guid"]
    assert found["body"] == "Hi there.\r\n"
    assert found["virtualSize"] == found["size"] == len(raw)
    assert found["bodyImap"] == '("text" "plain" NIL NIL NIL "7bit" 11 1)'
    assert found["bodyStructureImap"] == '("text" "plain" NIL NIL NIL "7bit" 11 1 NIL NIL NIL NIL)'
    carol = '(("Carol" NIL "carol" "example.com"))'
    assert found["envelopeImap"] == (
        f'("Tue, 01 Jan 2030 10:00:00 +0000" "Forms" {carol} {carol} {carol} '
        '((NIL NIL "ada" "example.org")) NIL NIL NIL "<1@example.com>")'
    )


@pytest.mark.parametrize(
    "raw",
    [
        RICH,
        RICH.replace(b"\r\n", b"\n"),
        b"Subject: x\n\na\r\nb\nc\r",
        multipart_message.raw(multipart_message.FILES[:1]).replace(b"\r\n", b"\n"),
        multipart_message.raw([multipart_message.File("Content-Type: a/b", b"x\n" * 70_000, b"")]),
        b"Subject: x\r\n\r\n" + b"\n" * 70_000,
    ],
)
async def test_the_virtual_size_has_crlf_at_every_line(ada: Client, raw: bytes) -> None:
    found = await one(ada, (await receive(ada, raw)).message_id, "virtualSize")
    assert found["virtualSize"] == len(re.sub(rb"(?<!\r)\n", b"\r\n", raw))


async def test_the_number_in_the_folder_counts_what_is_there(ada: Client) -> None:
    keys = [(await receive(ada, f"Number {n}")).message_id for n in range(5)]
    gone = global_ids.encode("Message", keys[1])
    await ada(
        "mutation ($id: ID!) { messageDelete(input: {select: {ids: [$id]}}) { errors { code } } }",
        id=gone,
    )
    for key, number in ((keys[0], 1), (keys[2], 2), (keys[4], 4)):
        assert (await one(ada, key, "seq"))["seq"] == number


LISTED = "{ messages(first: 50) { nodes { seq reference { uid message { subject } } } } }"
HELD = '{ messages(users: {usernames: ["ada"]}, first: 50) { nodes { refCount storageId } } }'


@pytest.mark.parametrize("document", [LISTED, HELD])
async def test_a_list_of_many_costs_no_more_statements_than_of_one(
    ada: Client, root: Client, statements: list[str], document: str
) -> None:
    client = root if document is HELD else ada

    async def cost() -> int:
        del statements[:]
        answer = await client(document)
        assert answer["messages"]["nodes"]
        return len([sent for sent in statements if "api_keys" not in sent])

    async def draft(subject: str) -> None:
        key = (await receive(ada, subject)).message_id
        ref = {"message": {"id": global_ids.encode("Message", key)}, "action": "REPLY"}
        assert not (await upload(ada, reference=ref, text="x"))["errors"]

    await draft("First")
    await cost()
    few = await cost()
    for n in range(20):
        await draft(f"More {n}")
    assert [await cost(), await cost()] == [few, few]


async def test_who_shares_a_body_is_for_administrators(
    ada: Client, bob: Client, root: Client
) -> None:
    raw = raw_message("Shared", body="x" * 100)
    key = (await receive(ada, raw)).message_id
    await receive(bob, raw)
    fields = "refCount storageId"
    found = await one(root, key, fields)
    assert found["refCount"] == 2
    assert re.fullmatch("[0-9a-f]{64}", found["storageId"])
    document = "query ($id: ID!) { message(by: {id: $id}) { FIELD } }"
    for field in fields.split():
        answer = await ada.raw(
            document.replace("FIELD", field), id=global_ids.encode("Message", key)
        )
        assert [each["extensions"]["code"] for each in answer["errors"]] == ["FORBIDDEN"]


async def test_a_draft_knows_what_it_answers_also_when_saved_again(
    ada: Client, bob: Client
) -> None:
    placed = await receive(ada, "Question")
    ref = {
        "message": {"id": global_ids.encode("Message", placed.message_id)},
        "action": "REPLY_ALL",
    }
    answer = await upload(ada, reference=ref, text="Well")
    key = answer["message"]["id"]
    fields = "reference { action uid message { subject } mailbox { path } }"
    document = f"query ($id: ID!) {{ message(by: {{id: $id}}) {{ {fields} }} }}"
    expected = {
        "action": "REPLY_ALL",
        "uid": placed.uid,
        "message": {"subject": "Question"},
        "mailbox": {"path": "INBOX"},
    }
    assert (await ada(document, id=key))["message"]["reference"] == expected
    again = await upload(ada, replacePrevious={"id": key}, subject="Re: Question", text="Better")
    assert again["message"]["id"] == key
    assert (await ada(document, id=key))["message"]["reference"] == expected
    assert (await bob(document, id=key))["message"] is None
    await ada(
        "mutation ($id: ID!) { messageDelete(input: {select: {ids: [$id]}, permanent: true}) "
        "{ errors { code } } }",
        id=global_ids.encode("Message", placed.message_id),
    )
    gone = (await ada(document, id=key))["message"]["reference"]
    assert gone == {"action": "REPLY_ALL", "uid": None, "message": None, "mailbox": None}
    plain = await one(ada, (await receive(ada, "Plain")).message_id, "reference { uid }")
    assert plain["reference"] is None


EVENTS = """events { method uid summary startsAt endsAt allDay location
  organizer { name address } attendees { name address } }"""


async def test_an_invitation_is_read_from_every_form_it_comes_in_and_told_once(
    ada: Client,
) -> None:
    part = "Content-Type: text/calendar; charset=utf-8; method=REQUEST\r\n"
    files = [
        multipart_message.File(part, CALENDAR, CALENDAR),
        multipart_message.File(
            "Content-Type: application/ics; name=invite.ics\r\n"
            "Content-Disposition: attachment\r\nContent-Transfer-Encoding: base64",
            multipart_message.wrapped(CALENDAR),
            CALENDAR,
        ),
        multipart_message.File("Content-Type: text/calendar", b"BEGIN:NONSENSE\0\xff", b""),
    ]
    found = await one(ada, (await receive(ada, multipart_message.raw(files))).message_id, EVENTS)
    assert found["events"] == [
        {
            "method": "REQUEST",
            "uid": "lamp-1",
            "summary": "Grüe",
            "startsAt": "2030-07-01T08:00:00Z",
            "endsAt": "2030-07-01T09:00:00Z",
            "allDay": False,
            "location": None,
            "organizer": {"name": "Nora", "address": "nora@example.com"},
            "attendees": [{"name": None, "address": "ada@example.org"}],
        }
    ]
    assert (await one(ada, (await receive(ada, "None")).message_id, EVENTS))["events"] == []


async def test_a_calendar_beyond_all_bounds_is_read_as_far_as_they_go(ada: Client) -> None:
    many = b"BEGIN:VEVENT\r\nUID:%d\r\nEND:VEVENT\r\n"
    body = b"BEGIN:VCALENDAR\r\n" + b"".join(many % n for n in range(60_000))
    part = "Content-Type: text/calendar"
    files = [
        multipart_message.File(part, CALENDAR, CALENDAR),
        *[multipart_message.File(part, body, body)] * 3,
    ]
    key = (await receive(ada, multipart_message.raw(files))).message_id
    before = time.process_time()
    found = await one(ada, key, "events { uid }")
    assert time.process_time() - before < 3
    assert [each["uid"] for each in found["events"]] == ["lamp-1", *map(str, range(99))]


ATTACHED = """attachments { filename text(maxBytes: 10) message { subject from { address } date
  to { address } cc { address } messageId text
  attachments { section url message { subject attachments { filename url } } } } }"""


async def test_the_files_of_an_attached_message_are_reached(ada: Client) -> None:
    inner = (
        b"From: eve@example.com\r\nSubject: Innermost\r\n"
        b"Content-Type: text/plain; name=deep.txt\r\n"
        b"Content-Disposition: attachment\r\n\r\ndeep down\r\n"
    )
    middle = (
        b"From: Dora <dora@example.com>\r\nTo: eve@example.com\r\nMessage-ID: <m@x>\r\n"
        b"Subject: =?utf-8?q?M=C3=BC?=\r\nDate: Tue, 01 Jan 2030 10:00:00 +0000\r\n"
        b"Content-Type: multipart/mixed; boundary=in\r\n\r\n--in\r\n\r\nInner text\r\n"
        b"--in\r\nContent-Type: application/zip\r\nContent-Transfer-Encoding: base64\r\n\r\n"
        + multipart_message.wrapped(multipart_message.INNER)
        + b"\r\n--in\r\nContent-Type: message/rfc822\r\n\r\n" + inner + b"\r\n--in--\r\n"
    )  # fmt: skip
    files = [
        multipart_message.File("Content-Type: message/rfc822", middle, middle),
        multipart_message.base64_file("filename=small.pdf", b"small", b"c21hbGw="),
        multipart_message.File(
            "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64", b"eA==", b"x"
        ),
        multipart_message.File(
            "Content-Type: text/x-log\r\nContent-Disposition: attachment", b"0123456789abc", b""
        ),
    ]
    found = await one(ada, (await receive(ada, multipart_message.raw(files))).message_id, ATTACHED)
    first, *others = found["attachments"]
    message = first["message"]
    assert first["filename"] == "Mü.eml"
    assert message["subject"] == "Mü"
    assert message["from"] == {"address": "dora@example.com"}
    assert message["to"] == [{"address": "eve@example.com"}]
    assert (message["cc"], message["date"]) == ([], "2030-01-01T10:00:00Z")
    assert message["messageId"] == "<m@x>"
    assert message["text"].strip() == "Inner text"
    archive, letter = message["attachments"]
    assert (archive["section"], archive["message"]) == ("2.2", None)
    assert (await ada.http.get(archive["url"])).content == multipart_message.INNER
    (deep,) = letter["message"]["attachments"]
    assert (letter["message"]["subject"], deep["filename"]) == ("Innermost", "deep.txt")
    assert (await ada.http.get(deep["url"])).content == b"deep down\r\n"
    assert [each["message"] for each in others] == [None, None, None]
    assert [each["text"] for each in others] == [None, None, "0123456789"]


async def test_parts_of_the_source_are_fetched_and_make_the_whole(ada: Client) -> None:
    raw = b"Subject: All\r\n\r\n" + "aü€😀ß𝄞\r\n".encode() * 10
    key = (await receive(ada, raw)).message_id

    async def pieces(fields: str, size: int) -> bytes:
        gathered, offset = b"", 0
        while piece := (await one(ada, key, fields % (offset, size)))["x"]:
            gathered += piece.encode()
            offset = len(gathered)
        return gathered

    for size in (5, 7, 1000):
        assert await pieces("x: source(offset: %d, maxBytes: %d)", size) == raw
        body = await pieces('x: bodyPart(section: "TEXT", offset: %d, maxBytes: %d)', size)
        assert body == raw[len("Subject: All\r\n\r\n") :]
    split = await one(ada, key, "source(offset: 18)")
    assert base64.b64decode(split["source"]) == raw[18:]
    for wrong in ("source(offset: -1)", 'bodyPart(section: "1", offset: -1)',
                  'bodyPart(section: "1", maxBytes: -3)'):  # fmt: skip
        document = f"query ($id: ID!) {{ message(by: {{id: $id}}) {{ {wrong} }} }}"
        answer = await ada.raw(document, id=global_ids.encode("Message", key))
        assert [each["extensions"]["code"] for each in answer["errors"]] == ["BAD_USER_INPUT"]


async def test_what_html_would_have_loaded_is_counted(ada: Client) -> None:
    page = (
        b'<img src="https://far.example/pixel.gif" width=1 height=1><img src="cid:photo@here">'
        b'<table background="//far.example/b.png"><tr><td style="background:url(http://far/x)">x'
    )
    raw = RICH.replace(multipart_message.HTML, page)
    key = (await receive(ada, raw)).message_id
    fields = "html remote: html(remoteImages: true) remoteImageCount hasComplexHtml"
    found = await one(ada, key, fields)
    assert found["remoteImageCount"] == 3
    assert not found["hasComplexHtml"]
    assert "far" not in found["html"][0]
    assert "https://far.example/pixel.gif" in found["remote"][0]
    (own,) = re.findall(r'src="([^"]+)"', found["html"][0])
    assert (await ada.http.get(own.replace("&amp;", "&"))).content == multipart_message.PHOTO


async def test_a_hundred_thousand_nested_tags_are_shown_as_text_at_once(ada: Client) -> None:
    raw = b"Subject: Deep\r\nContent-Type: text/html\r\n\r\n" + b"<div>" * 100_000 + b"<b>deep"
    before = time.process_time()
    key = (await receive(ada, raw)).message_id
    found = await one(ada, key, "html hasComplexHtml text intro")
    assert time.process_time() - before < 3
    assert found["hasComplexHtml"]
    assert found["html"][0].count("<") == 2
    assert found["text"].strip() == found["intro"].strip() == "deep"


async def arrive(client: Client, raw: bytes) -> str:
    """Deliver as a neighbour does, and give the id."""
    house = LocalBackend(client.world)
    to = await house.accept_recipient(client.address, "carol@example.com")
    (placed,) = await house.deliver(raw, [to], "carol@example.com")
    assert isinstance(placed, InsertedMessage)
    return global_ids.encode("Message", placed.message_id)


VERIFIED = """query ($id: ID!) { message(by: {id: $id}) {
  verification { spf dkim dmarc arc authenticationResults } } }"""
STAMPED = (
    b"Authentication-Results: mx.example.org; spf=pass smtp.mailfrom=carol@example.com;\r\n"
    b"\tdkim=pass header.d=example.com; dmarc=pass\r\n"
    b"Received: from far.example by mx.example.org; Tue, 01 Jan 2030 10:00:00 +0000\r\n"
)


async def test_what_our_server_found_out_is_shown_where_it_is_named(ada: Client) -> None:
    silent = await arrive(ada, STAMPED + raw_message("Nobody is named"))
    limit(ada.world, authserv_ids=("mx.example.org",))
    told = await arrive(ada, STAMPED + raw_message("Stamped"))
    border = STAMPED[STAMPED.index(b"Received") :]
    forged = await arrive(ada, border + STAMPED + raw_message("Forged"))
    for key in (silent, forged):
        assert (await ada(VERIFIED, id=key))["message"]["verification"] is None
    found = (await ada(VERIFIED, id=told))["message"]["verification"]
    assert found.pop("authenticationResults").startswith("mx.example.org; spf=pass")
    assert found == {"spf": "example.com", "dkim": "example.com", "dmarc": "pass", "arc": None}


async def test_what_a_user_writes_on_top_is_no_statement(ada: Client, bob: Client) -> None:
    world = ada.world
    limit(world, authserv_ids=("mx.example.org",))
    saved = await upload(ada, raw=(STAMPED + raw_message("Saved")).decode())
    assert not saved["errors"]
    to = JobRecipient(1, ada.address, 1, world.now() + timedelta(days=1))
    job = DeliveryJob(1, 2, "q", bob.user.id, 4, 5, bob.address, "example.org", world.now(), [to])
    (result,) = (
        await local_delivery.deliver_to_local_recipients(
            world, job, STAMPED + raw_message("Sent here")
        )
    ).values()
    assert result.state is DeliveryState.DELIVERED
    listed = await ada("{ messages { nodes { subject verification { dmarc } } } }")
    assert {each["subject"]: each["verification"] for each in listed["messages"]["nodes"]} == {
        "Saved": None,
        "Sent here": None,
    }


INSIDE = (
    "body", "envelopeImap", "bodyImap", "bodyStructureImap", "virtualSize", "events { uid }",
    "attachmentsUrl", "remoteImageCount", "attachments { text message { subject } }",
)  # fmt: skip


@pytest.mark.parametrize("field", INSIDE)
async def test_nobody_else_reads_any_of_it(ada: Client, bob: Client, field: str) -> None:
    key = global_ids.encode("Message", (await receive(ada, RICH)).message_id)
    document = f"query ($id: ID!) {{ message(by: {{id: $id}}) {{ {field} }} }}"
    assert (await bob(document, id=key))["message"] is None
    over = await make_client(ada.world, ada.http, "over", role=Role.ADMIN)
    answer = await over.raw(document, id=key)
    assert {each["extensions"]["code"] for each in answer["errors"]} == {"FORBIDDEN"}


async def test_addresses_of_files_end(ada: Client, clock: Any) -> None:
    found = await one(ada, (await receive(ada, RICH)).message_id, "attachmentsUrl")
    assert (await ada.http.get(found["attachmentsUrl"])).status_code == 200
    clock.tick(seconds=timedelta(minutes=21).total_seconds())
    assert (await ada.http.get(found["attachmentsUrl"])).status_code == 401
    none = await one(ada, (await receive(ada, "None")).message_id, "attachmentsUrl")
    assert none["attachmentsUrl"] is None
