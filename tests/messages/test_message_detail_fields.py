"""Test fields of a stored message that lists don't select."""

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
from tests.conftest import GraphQLClient, deliver_to, make_client, raw_message
from tests.support.accounts.key_value_operations import change_options
from tests.support.case_loop import each_case
from tests.support.mail import multipart_message
from tests.support.mail.multipart_message import MULTIPART_MESSAGE
from tests.support.operations.message_sources import import_message, save_draft

IMAP_POP3_QUERY = """query ($id: ID!) { message(by: {id: $id}) {
  emailId size body pop3Uidl imap { uid seq size envelope body bodyStructure }
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


async def load_fields(client: GraphQLClient, message_id: int, fields: str) -> Any:
    """Load fields of a message."""
    document = f"query ($id: ID!) {{ message(by: {{id: $id}}) {{ {fields} }} }}"
    return (await client(document, id=global_ids.encode("Message", message_id)))["message"]


async def test_message_has_imap_and_pop3_fields(ada: GraphQLClient) -> None:
    raw = raw_message("Forms", Message_ID="<1@example.com>")
    inserted = await deliver_to(ada, raw)
    message = (await ada(IMAP_POP3_QUERY, id=global_ids.encode("Message", inserted.message_id)))[
        "message"
    ]
    assert message["imap"]["uid"] == inserted.uid
    assert message["pop3Uidl"] == message["emailId"]
    assert message["body"] == "Hi there.\r\n"
    assert message["imap"]["size"] == message["size"] == len(raw)
    assert message["imap"]["body"] == '("text" "plain" NIL NIL NIL "7bit" 11 1)'
    assert (
        message["imap"]["bodyStructure"]
        == '("text" "plain" NIL NIL NIL "7bit" 11 1 NIL NIL NIL NIL)'
    )
    carol = '(("Carol" NIL "carol" "example.com"))'
    assert message["imap"]["envelope"] == (
        f'("Tue, 01 Jan 2030 10:00:00 +0000" "Forms" {carol} {carol} {carol} '
        '((NIL NIL "ada" "example.org")) NIL NIL NIL "<1@example.com>")'
    )


async def test_imap_size_counts_crlf_for_every_line(ada: GraphQLClient) -> None:
    cases: list[bytes] = [
        MULTIPART_MESSAGE,
        MULTIPART_MESSAGE.replace(b"\r\n", b"\n"),
        b"Subject: x\n\na\r\nb\nc\r",
        multipart_message.build_message(multipart_message.ATTACHMENTS[:1]).replace(b"\r\n", b"\n"),
        multipart_message.build_message(
            [multipart_message.AttachmentPart("Content-Type: a/b", b"x\n" * 70_000, b"")]
        ),
        b"Subject: x\r\n\r\n" + b"\n" * 70_000,
    ]
    for case in each_case(cases):
        with case as raw:
            message = await load_fields(
                ada, (await deliver_to(ada, raw)).message_id, "imap { size }"
            )
            assert message["imap"]["size"] == len(re.sub(rb"(?<!\r)\n", b"\r\n", raw))


async def test_sequence_number_skips_deleted_messages(ada: GraphQLClient) -> None:
    message_ids = [(await deliver_to(ada, f"Number {n}")).message_id for n in range(5)]
    deleted_id = global_ids.encode("Message", message_ids[1])
    await ada(
        "mutation ($id: ID!) { messageDelete(input: {select: {ids: [$id]}}) { errors { code } } }",
        id=deleted_id,
    )
    for message_id, number in ((message_ids[0], 1), (message_ids[2], 2), (message_ids[4], 4)):
        assert await load_fields(ada, message_id, "imap { seq }") == {"imap": {"seq": number}}


USER_LIST = (
    "{ messages(first: 50) { nodes { imap { seq } original { uid message { subject } } } } }"
)
ROOT_LIST = (
    '{ messages(users: {usernames: ["ada"]}, first: 50) { nodes { storage { sha256 refCount } } } }'
)


@pytest.mark.parametrize("document", [USER_LIST, ROOT_LIST])
async def test_detail_statement_count_is_independent_of_list_length(
    ada: GraphQLClient, root: GraphQLClient, statements: list[str], document: str
) -> None:
    client = root if document is ROOT_LIST else ada

    async def count_statements() -> int:
        del statements[:]
        answer = await client(document)
        assert answer["messages"]["nodes"]
        return len([statement for statement in statements if "api_keys" not in statement])

    async def save_reply_draft(subject: str) -> None:
        message_id = (await deliver_to(ada, subject)).message_id
        ref = {"message": {"id": global_ids.encode("Message", message_id)}, "relation": "REPLY"}
        assert not (await save_draft(ada, original=ref, text="x"))["errors"]

    await save_reply_draft("First")
    await count_statements()
    expected = await count_statements()
    for n in range(20):
        await save_reply_draft(f"More {n}")
    assert [await count_statements(), await count_statements()] == [expected, expected]


async def test_blob_sharing_fields_are_forbidden_for_users(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    raw = raw_message("Shared", body="x" * 100)
    message_id = (await deliver_to(ada, raw)).message_id
    await deliver_to(bob, raw)
    fields = "storage { sha256 refCount }"
    message = await load_fields(root, message_id, fields)
    assert message["storage"]["refCount"] == 2
    assert re.fullmatch("[0-9a-f]{64}", message["storage"]["sha256"])
    document = "query ($id: ID!) { message(by: {id: $id}) { FIELD } }"
    for field in ("storage { sha256 }", "storage { refCount }"):
        answer = await ada.execute(
            document.replace("FIELD", field), id=global_ids.encode("Message", message_id)
        )
        assert [error["extensions"]["code"] for error in answer["errors"]] == ["FORBIDDEN"]


async def test_draft_keeps_reference_when_saved_again(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    question = await deliver_to(ada, "Question")
    ref = {
        "message": {"id": global_ids.encode("Message", question.message_id)},
        "relation": "REPLY_ALL",
    }
    answer = await save_draft(ada, original=ref, text="Well")
    draft_id = answer["message"]["id"]
    fields = "original { relation uid message { subject } mailbox { path } }"
    document = f"query ($id: ID!) {{ message(by: {{id: $id}}) {{ {fields} }} }}"
    expected = {
        "relation": "REPLY_ALL",
        "uid": question.uid,
        "message": {"subject": "Question"},
        "mailbox": {"path": "INBOX"},
    }
    assert (await ada(document, id=draft_id))["message"]["original"] == expected
    repeated = await save_draft(ada, draft={"id": draft_id}, subject="Re: Question", text="Better")
    assert repeated["message"]["id"] == draft_id
    assert (await ada(document, id=draft_id))["message"]["original"] == expected
    assert (await bob(document, id=draft_id))["message"] is None
    await ada(
        "mutation ($id: ID!) { messageDelete(input: {select: {ids: [$id]}, permanent: true}) "
        "{ errors { code } } }",
        id=global_ids.encode("Message", question.message_id),
    )
    after_delete = (await ada(document, id=draft_id))["message"]["original"]
    assert after_delete == {"relation": "REPLY_ALL", "uid": None, "message": None, "mailbox": None}
    without_reference = await load_fields(
        ada, (await deliver_to(ada, "Plain")).message_id, "original { uid }"
    )
    assert without_reference["original"] is None


EVENT_FIELDS = """calendarEvents { method uid summary startsAt endsAt allDay location
  organizer { name address } attendees { name address } }"""


async def test_invitation_in_several_parts_is_listed_once(
    ada: GraphQLClient,
) -> None:
    part = "Content-Type: text/calendar; charset=utf-8; method=REQUEST\r\n"
    files = [
        multipart_message.AttachmentPart(part, CALENDAR, CALENDAR),
        multipart_message.AttachmentPart(
            "Content-Type: application/ics; name=invite.ics\r\n"
            "Content-Disposition: attachment\r\nContent-Transfer-Encoding: base64",
            multipart_message.base64_lines(CALENDAR),
            CALENDAR,
        ),
        multipart_message.AttachmentPart(
            "Content-Type: text/calendar", b"BEGIN:NONSENSE\0\xff", b""
        ),
    ]
    message = await load_fields(
        ada,
        (await deliver_to(ada, multipart_message.build_message(files))).message_id,
        EVENT_FIELDS,
    )
    assert message["calendarEvents"] == [
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
    assert (await load_fields(ada, (await deliver_to(ada, "None")).message_id, EVENT_FIELDS))[
        "calendarEvents"
    ] == []


async def test_huge_calendar_is_parsed_up_to_limit(ada: GraphQLClient) -> None:
    event = b"BEGIN:VEVENT\r\nUID:%d\r\nEND:VEVENT\r\n"
    body = b"BEGIN:VCALENDAR\r\n" + b"".join(event % n for n in range(60_000))
    part = "Content-Type: text/calendar"
    files = [
        multipart_message.AttachmentPart(part, CALENDAR, CALENDAR),
        *[multipart_message.AttachmentPart(part, body, body)] * 3,
    ]
    message_id = (await deliver_to(ada, multipart_message.build_message(files))).message_id
    before = time.process_time()
    message = await load_fields(ada, message_id, "calendarEvents { uid }")
    assert time.process_time() - before < 3
    assert [event_fields["uid"] for event_fields in message["calendarEvents"]] == [
        "lamp-1",
        *map(str, range(99)),
    ]


FILE_FIELDS = """attachments { filename text(maxBytes: 10) message { subject from { address } date
  to { address } cc { address } messageIdHeader text
  attachments { section url message { subject attachments { filename url } } } } }"""


async def test_attachments_of_attached_message_are_reachable(ada: GraphQLClient) -> None:
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
        + multipart_message.base64_lines(multipart_message.INNER_ATTACHMENT)
        + b"\r\n--in\r\nContent-Type: message/rfc822\r\n\r\n" + inner + b"\r\n--in--\r\n"
    )  # fmt: skip
    files = [
        multipart_message.AttachmentPart("Content-Type: message/rfc822", middle, middle),
        multipart_message.base64_attachment("filename=small.pdf", b"small", b"c21hbGw="),
        multipart_message.AttachmentPart(
            "Content-Type: message/rfc822\r\nContent-Transfer-Encoding: base64", b"eA==", b"x"
        ),
        multipart_message.AttachmentPart(
            "Content-Type: text/x-log\r\nContent-Disposition: attachment", b"0123456789abc", b""
        ),
    ]
    outer = await load_fields(
        ada, (await deliver_to(ada, multipart_message.build_message(files))).message_id, FILE_FIELDS
    )
    first, *others = outer["attachments"]
    message = first["message"]
    assert first["filename"] == "Mü.eml"
    assert message["subject"] == "Mü"
    assert message["from"] == {"address": "dora@example.com"}
    assert message["to"] == [{"address": "eve@example.com"}]
    assert (message["cc"], message["date"]) == ([], "2030-01-01T10:00:00Z")
    assert message["messageIdHeader"] == "<m@x>"
    assert message["text"].strip() == "Inner text"
    archive, attached_message = message["attachments"]
    assert (archive["section"], archive["message"]) == ("2.2", None)
    assert (await ada.http.get(archive["url"])).content == multipart_message.INNER_ATTACHMENT
    (nested_file,) = attached_message["message"]["attachments"]
    assert (attached_message["message"]["subject"], nested_file["filename"]) == (
        "Innermost",
        "deep.txt",
    )
    assert (await ada.http.get(nested_file["url"])).content == b"deep down\r\n"
    assert [attachment["message"] for attachment in others] == [None, None, None]
    assert [attachment["text"] for attachment in others] == [None, None, "0123456789"]


async def test_source_ranges_join_to_whole_source(ada: GraphQLClient) -> None:
    raw = b"Subject: All\r\n\r\n" + "aü€😀ß𝄞\r\n".encode() * 10
    message_id = (await deliver_to(ada, raw)).message_id

    async def fetch_in_ranges(fields: str, size: int) -> bytes:
        content, offset = b"", 0
        while chunk := (await load_fields(ada, message_id, fields % (offset, size)))["x"]:
            content += chunk.encode()
            offset = len(content)
        return content

    for size in (5, 7, 1000):
        assert await fetch_in_ranges("x: rawSource(offset: %d, maxBytes: %d)", size) == raw
        body = await fetch_in_ranges('x: bodyPart(section: "TEXT", offset: %d, maxBytes: %d)', size)
        assert body == raw[len("Subject: All\r\n\r\n") :]
    split = await load_fields(ada, message_id, "rawSource(offset: 18)")
    assert base64.b64decode(split["rawSource"]) == raw[18:]
    for field in ("rawSource(offset: -1)", 'bodyPart(section: "1", offset: -1)',
                  'bodyPart(section: "1", maxBytes: 0)',
                  'bodyPart(section: "1", maxBytes: -3)'):  # fmt: skip
        document = f"query ($id: ID!) {{ message(by: {{id: $id}}) {{ {field} }} }}"
        answer = await ada.execute(document, id=global_ids.encode("Message", message_id))
        assert [error["extensions"]["code"] for error in answer["errors"]] == ["BAD_USER_INPUT"]


async def test_remote_images_of_html_are_counted(ada: GraphQLClient) -> None:
    page = (
        b'<img src="https://far.example/pixel.gif" width=1 height=1><img src="cid:photo@here">'
        b'<table background="//far.example/b.png"><tr><td style="background:url(http://far/x)">x'
    )
    raw = MULTIPART_MESSAGE.replace(multipart_message.HTML_TEXT, page)
    message_id = (await deliver_to(ada, raw)).message_id
    fields = "html remote: html(remoteImages: true) remoteImageCount hasComplexHtml"
    message = await load_fields(ada, message_id, fields)
    assert message["remoteImageCount"] == 3
    assert not message["hasComplexHtml"]
    assert "far" not in message["html"]
    assert "https://far.example/pixel.gif" in message["remote"]
    (photo_url,) = re.findall(r'src="([^"]+)"', message["html"])
    assert (
        await ada.http.get(photo_url.replace("&amp;", "&"))
    ).content == multipart_message.PHOTO_CONTENT


async def test_deeply_nested_html_is_shown_as_text(ada: GraphQLClient) -> None:
    raw = b"Subject: Deep\r\nContent-Type: text/html\r\n\r\n" + b"<div>" * 100_000 + b"<b>deep"
    before = time.process_time()
    message_id = (await deliver_to(ada, raw)).message_id
    message = await load_fields(ada, message_id, "html hasComplexHtml text preview")
    assert time.process_time() - before < 3
    assert message["hasComplexHtml"]
    assert message["html"].count("<") == 2
    assert message["text"].strip() == message["preview"].strip() == "deep"


async def deliver_message(client: GraphQLClient, raw: bytes) -> str:
    """Deliver through the local backend and return the global ID of the message."""
    backend = LocalBackend(client.environment)
    recipient = await backend.accept_recipient(client.address, "carol@example.com")
    (inserted,) = await backend.deliver(raw, [recipient], "carol@example.com")
    assert isinstance(inserted, InsertedMessage)
    return global_ids.encode("Message", inserted.message_id)


VERIFICATION_QUERY = """query ($id: ID!) { message(by: {id: $id}) {
  authentication { spf { result domain } dkim { result domain selector } dmarc { result }
    arc { result } header } } }"""
TRUSTED_HEADER = (
    b"Authentication-Results: mx.example.org; spf=pass smtp.mailfrom=carol@example.com;\r\n"
    b"\tdkim=pass header.d=example.com; dmarc=pass\r\n"
    b"Received: from far.example by mx.example.org; Tue, 01 Jan 2030 10:00:00 +0000\r\n"
)


async def test_verification_is_read_from_configured_authserv_id(ada: GraphQLClient) -> None:
    without_authserv_id = await deliver_message(
        ada, TRUSTED_HEADER + raw_message("Nobody is named")
    )
    change_options(ada.environment, authserv_ids=("mx.example.org",))
    trusted = await deliver_message(ada, TRUSTED_HEADER + raw_message("Stamped"))
    received_field = TRUSTED_HEADER[TRUSTED_HEADER.index(b"Received") :]
    forged = await deliver_message(ada, received_field + TRUSTED_HEADER + raw_message("Forged"))
    for message_id in (without_authserv_id, forged):
        assert (await ada(VERIFICATION_QUERY, id=message_id))["message"]["authentication"] is None
    authentication = (await ada(VERIFICATION_QUERY, id=trusted))["message"]["authentication"]
    assert authentication.pop("header").startswith("mx.example.org; spf=pass")
    assert authentication == {
        "spf": {"result": "PASS", "domain": "example.com"},
        "dkim": {"result": "PASS", "domain": "example.com", "selector": None},
        "dmarc": {"result": "PASS"},
        "arc": None,
    }


async def test_spf_results_are_told_apart(ada: GraphQLClient) -> None:
    change_options(ada.environment, authserv_ids=("mx.example.org",))
    cases: list[tuple[bytes, tuple[str, str | None] | None]] = [
        (b"spf=fail (not permitted) smtp.mailfrom=a@b.example", ("FAIL", "b.example")),
        (b"spf=softfail smtp.mailfrom=b.example", ("SOFTFAIL", "b.example")),
        (b"spf=none smtp.helo=mx.b.example", ("NONE", "mx.b.example")),
        (b"spf=temperror", ("TEMPERROR", None)),
        (b"spf=unheard smtp.mailfrom=b.example", None),
        (b"dmarc=fail", None),
    ]
    for case in each_case(cases):
        with case as (statement, expected):
            header = b"Authentication-Results: mx.example.org; " + statement + b"\r\n"
            header += TRUSTED_HEADER[TRUSTED_HEADER.index(b"Received") :]
            message_id = await deliver_message(ada, header + raw_message("Results"))
            authentication = (await ada(VERIFICATION_QUERY, id=message_id))["message"][
                "authentication"
            ]
            spf = authentication["spf"]
            assert (spf and (spf["result"], spf["domain"])) == expected


async def test_body_parts_have_every_alternative(ada: GraphQLClient) -> None:
    message_id = (await deliver_to(ada, MULTIPART_MESSAGE)).message_id
    fields = "html text bodyParts { section contentType content }"
    message = await load_fields(ada, message_id, fields)
    assert [part["contentType"] for part in message["bodyParts"]] == ["text/plain", "text/html"]
    plain, page = message["bodyParts"]
    assert plain["content"] == message["text"]
    assert "onclick" not in page["content"]
    assert page["section"] != plain["section"]


async def test_verification_ignores_header_written_by_user(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    environment = ada.environment
    change_options(environment, authserv_ids=("mx.example.org",))
    saved = await import_message(ada, raw=(TRUSTED_HEADER + raw_message("Saved")).decode())
    assert not saved["errors"]
    recipient = JobRecipient(1, ada.address, 1, environment.now() + timedelta(days=1))
    job = DeliveryJob(
        1, 2, "q", bob.user.id, 4, 5, bob.address, "example.org", environment.now(), [recipient]
    )
    (result,) = (
        await local_delivery.deliver_to_local_recipients(
            environment, job, TRUSTED_HEADER + raw_message("Sent here")
        )
    ).values()
    assert result.state is DeliveryState.DELIVERED
    answer = await ada("{ messages { nodes { subject authentication { header } } } }")
    assert {
        message["subject"]: message["authentication"] for message in answer["messages"]["nodes"]
    } == {
        "Saved": None,
        "Sent here": None,
    }


CONTENT_FIELDS = (
    "body", "imap { envelope }", "imap { body }", "imap { bodyStructure }", "imap { size }",
    "calendarEvents { uid }", "attachmentsUrl", "remoteImageCount",
    "attachments { text message { subject } }",
)  # fmt: skip


async def test_content_field_of_foreign_message_is_refused(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    message_id = global_ids.encode("Message", (await deliver_to(ada, MULTIPART_MESSAGE)).message_id)
    admin = await make_client(ada.environment, ada.http, "over", role=Role.ADMIN)
    for case in each_case(CONTENT_FIELDS):
        with case as field:
            document = f"query ($id: ID!) {{ message(by: {{id: $id}}) {{ {field} }} }}"
            assert (await bob(document, id=message_id))["message"] is None
            answer = await admin.execute(document, id=message_id)
            assert {error["extensions"]["code"] for error in answer["errors"]} == {"FORBIDDEN"}


async def test_attachments_url_expires(ada: GraphQLClient, clock: Any) -> None:
    message = await load_fields(
        ada, (await deliver_to(ada, MULTIPART_MESSAGE)).message_id, "attachmentsUrl"
    )
    assert (await ada.http.get(message["attachmentsUrl"])).status_code == 200
    clock.tick(seconds=timedelta(minutes=21).total_seconds())
    assert (await ada.http.get(message["attachmentsUrl"])).status_code == 401
    without_attachments = await load_fields(
        ada, (await deliver_to(ada, "None")).message_id, "attachmentsUrl"
    )
    assert without_attachments["attachmentsUrl"] is None
