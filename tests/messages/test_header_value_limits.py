"""Test header values at the limits of the columns: stored, listed, filtered and sorted."""

import base64
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import text

from models.admin.tasks import TaskState
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, raw_message
from tests.support.accounts.import_runs import eml_zip, import_archive
from tests.support.accounts.user_exports import export_account, store_raw_message
from tests.support.accounts.user_exports import import_account as import_export
from tests.support.case_loop import each_case
from tests.support.mail_servers.lmtp_client import SmtpTestClient
from tests.support.operations.bulk_operations import run_message_mutation
from tests.support.operations.connector_operations import (
    add_connector,
    dovecot_account,
    run_connector,
    shared_dovecot,
)
from tests.support.run_scope import RUNS_ALL_TESTS
from tests.support.servers.dovecot_server import DovecotAccount

__all__ = ["dovecot_account", "shared_dovecot"]

MIN_DATE = "0001-01-01T00:00:00Z"
MAX_DATE = "9999-12-31T23:59:59Z"
DATE_FIELDS = {  # Value: instant by RFC 5322, None if outside the calendar, ... if either is valid.
    "Mon, 1 Jan 0001 00:00:00 +0000": MIN_DATE,
    "Mon, 1 Jan 0001 00:00:00 -0000": MIN_DATE,
    "1 Jan 0001 00:00:01 +0000": "0001-01-01T00:00:01Z",
    "1 Jan 0001 00:00:00 +2359": None,
    "1 Jan 0001 23:59:00 +2359": MIN_DATE,
    "1 Jan 0001 00:00:00 -2359": "0001-01-01T23:59:00Z",
    "31 Dec 0000 00:01:00 -2359": None,
    "1 Jan 0000 00:00:00 +0000": None,
    "31 Dec 9999 23:59:59 +0000": MAX_DATE,
    "31 Dec 9999 23:59:60 +0000": MAX_DATE,
    "31 Dec 9999 23:59:59.999999 +0000": MAX_DATE,
    "31 Dec 9999 23:59:59 -0001": None,
    "31 Dec 9999 00:00:00 -2359": "9999-12-31T23:59:00Z",
    "31 Dec 9999 23:59:59 +2359": "9999-12-31T00:00:59Z",
    "1 Jan 10000 00:00:00 +0000": None,
    "9999-12-31T23:59:59.999999+00:00": "9999-12-31T23:59:59.999999Z",
    "0001-01-01T00:00:00+00:00": MIN_DATE,
    "30 Feb 2024 00:00:00 +0000": None,
    "1 Jan 2024 24:00:00 +0000": None,
    f"1 Jan {'9' * 40} 00:00:00 +0000": None,
    f"{'9' * 40} Jan 2024 00:00:00 +0000": None,
    f"1 Jan 2024 00:00:00 +{'9' * 40}": ...,
    "1 Jan 2024 00:00:00 +9999": ...,
    "1 Jan 2024 00:00:00 +2400": ...,
    "1 Jan 2024 00:00:00 -2400": ...,
    "1 Jan 70 00:00:00 +0000": ...,
    "-1 Jan -1 00:00:00 -0000": ...,
    "\0": None,
    "": None,
}
ODD_VALUES = {
    "NUL": b"a\0b",
    "NUL in an encoded word": b"=?utf-8?Q?a=00b?=",
    "half surrogates": b"\xed\xa0\x80 \xed\xbf\xbf",
    "half surrogates in an encoded word": b"=?utf-8?Q?=ED=A0=80?= =?utf-16-be?B?2AA=?=",
    "half surrogates of UTF-7": b"=?utf-7?Q?+2AA-_+3AA-?=",
    "half surrogates of UTF-32": b"=?utf-32-be?B?AADYAA==?=",
    "noncharacters": "\uffff\U0010ffff\ufdd0".encode(),
    "controls": b"\x01\x7f\xc2\x85 =?utf-8?Q?=01=7F=0D=0A?=",
    "a number of 400 digits": b"9" * 400,
    "a negative number": b"-" + b"9" * 30,
    "no number": b"nan",
    "infinity": b"-inf",
    "an exponent": b"1e999999",
    "100,000 letters": b"y" * 100_000,
    "an index entry too long": b"<" + b"z" * 900 + b"@example.com>",
    "quotes": b"\"'\\\"'\\\\",
    "JSON": b'{"a": "\\u0000\\ud800"}',
}
FIELD_TEMPLATES = {
    "subject": b"Subject: %s",
    "from": b"From: %s <%s@example.com>, %s",
    "sender": b'Sender: "%s" <a@example.com>',
    "reply-to": b"Reply-To: %s <a@%s>",
    "to": b"To: %s: %s <x@example.com>;",
    "cc": b"Cc: %s",
    "bcc": b"Bcc: <%s@example.com> (%s)",
    "message-id": b"Message-ID: <%s@example.com>",
    "in-reply-to": b"In-Reply-To: <%s@example.com>",
    "references": b"References: <a@b> <%s@example.com> <%s>",
    "thread": b"Thread-Index: %s\r\nThread-Topic: %s",
    "list": b"List-Id: %s <%s>\r\nList-Unsubscribe: <https://example.com/%s>",
    "type": b"Content-Type: text/plain; charset=%s; name=\"%s\"; %s=1; format*=utf-8''%%00%s",
    "kind": b"Content-Type: text/%s; a*0*=utf-8''%%ED%%A0%%80; a*1=%s",
    "disposition": b"Content-Type: application/pdf; name=%s\r\n"
    b"Content-Disposition: attachment; filename*=utf-8''%%00%%ED%%A0%%80%s; size=%s",
    "cid": b"Content-Type: image/png\r\nContent-ID: <%s>\r\nContent-Transfer-Encoding: %s",
    "spam": b"X-Spam-Status: Yes, score=%s required=%s\r\nX-Spam-Score: %s\r\nX-Spam-Level: %s",
    "results": b"Authentication-Results: mx.example.org; spf=%s smtp.mailfrom=%s; dkim=%s",
    "others": b"X-Priority: %s\r\nAuto-Submitted: %s\r\nReturn-Path: <%s>\r\nReceived: from %s",
}

ALL_FIELDS = """id subject date receivedAt savedAt preview messageIdHeader inReplyTo references
contentType { value }
from { name address } sender { name address } replyTo { name address } to { name address }
cc { name address } bcc { name address } envelope { from recipients { formatted } }
mailingList { listId unsubscribe unsubscribeUrl unsubscribeOneClick }
attachments { filename contentType contentId size disposition transferEncoding }
spamReport { score requiredScore action } authentication { spf { domain reason }
dkim { domain selector reason } dmarc { reason } arc { reason } header }
headers { name value raw } rawHeader imap { envelope bodyStructure } text html
thread { subject lastReceivedAt participants { name address } messages(first: 5) { totalCount } }
mimeStructure { contentType { value } filename contentId parts { filename } }"""
COLUMN_FIELDS = "id subject date receivedAt savedAt from { name address }"  # read from columns only
MESSAGES_QUERY = """query ($filter: MessageFilter, $order: MessageOrder, $after: String) {
  viewer { user { messages(first: 100, filter: $filter, orderBy: $order, after: $after) {
    nodes { SHOWN } totalCount pageInfo { endCursor hasNextPage } } } } }"""


def build_messages() -> dict[str, bytes]:
    """Build all messages by key. The body of a message has its key."""
    raw_messages = [
        raw_message(f"Dated {nth}", Date=date).replace(b"\r\n\r\n", b"\r\n\r\n", 1)
        for nth, date in enumerate(DATE_FIELDS)
    ]
    for template in FIELD_TEMPLATES.values():
        for value in ODD_VALUES.values():
            field = template.replace(b"%s", b"\xff\xfe").replace(b"%%", b"%")
            field = field.replace(b"\xff\xfe", value)
            names = [name.lower() for name in re.findall(rb"^([\w-]+):", field, re.MULTILINE)]
            other_fields = [
                line
                for line in raw_message("Odd").split(b"\r\n\r\n")[0].split(b"\r\n")
                if line.partition(b":")[0].lower() not in names
            ]
            raw_messages.append(b"\r\n".join([*other_fields, field, b"", b"Hi there.", b""]))
    return {f"n{nth}": raw + f"n{nth}\r\n".encode() for nth, raw in enumerate(raw_messages)}


MESSAGES = build_messages()


def messages_for_route(route: str) -> dict[str, bytes]:
    """Return the messages that a route stores.

    All routes store all dates. LMTP stores all other messages, each other route a third of them,
    with `ALL_TESTS` all.
    There are 17 values for each field, so each third has all fields and all values.
    """
    if RUNS_ALL_TESTS or route == "LMTP":
        return MESSAGES
    third = list(ROUTES).index(route) % 3
    numbered = enumerate(MESSAGES.items())
    return {
        name: raw for nth, (name, raw) in numbered if nth < len(DATE_FIELDS) or nth % 3 == third
    }


async def store_by_lmtp(
    ada: GraphQLClient, lmtp_client: SmtpTestClient, _far: DovecotAccount
) -> None:
    for raw in messages_for_route("LMTP").values():
        await lmtp_client.start_data(ada.address)
        lmtp_client.send_bytes(raw + b".\r\n")
        assert (await lmtp_client.read_reply()).startswith("250")


async def store_by_upload(
    ada: GraphQLClient, _neighbour: SmtpTestClient, _far: DovecotAccount
) -> None:
    for raw in messages_for_route("upload").values():
        arguments = {"mailbox": {"path": "INBOX"}, "raw": base64.b64encode(raw).decode()}
        assert (await run_message_mutation(ada, "messageImport", **arguments))["errors"] == []


async def store_by_import(
    ada: GraphQLClient, _neighbour: SmtpTestClient, _far: DovecotAccount
) -> None:
    messages = messages_for_route("import")
    task = await import_archive(
        ada, eml_zip({f"{name}.eml": raw for name, raw in messages.items()})
    )
    assert (task["state"], int(task["importedCount"])) == ("SUCCEEDED", len(messages)), task["log"]


async def store_by_connector(
    ada: GraphQLClient, _neighbour: SmtpTestClient, dovecot_account: DovecotAccount
) -> None:
    messages = list(messages_for_route("connector").values())
    dovecot_account.save_messages(messages)
    run = await run_connector(ada.environment, await add_connector(ada, dovecot_account))
    assert (run.state, run.imported_count) == (TaskState.SUCCEEDED, len(messages)), run.log


ROUTES = {
    "LMTP": store_by_lmtp,
    "upload": store_by_upload,
    "import": store_by_import,
    "connector": store_by_connector,
}


async def load_messages(
    client: GraphQLClient, fields: str = COLUMN_FIELDS, **variables: Any
) -> list[Mapping[str, Any]]:
    """Load all messages of a user, page by page."""
    messages: list[Mapping[str, Any]] = []
    after = None
    while True:
        answer = await client(MESSAGES_QUERY.replace("SHOWN", fields), after=after, **variables)
        page = answer["viewer"]["user"]["messages"]
        assert page["totalCount"] is not None
        messages += page["nodes"]
        if not page["pageInfo"]["hasNextPage"]:
            return messages
        after = page["pageInfo"]["endCursor"]


@pytest.mark.parametrize("route", ROUTES)
async def test_messages_with_any_header_value_are_stored_and_listed(
    route: str, ada: GraphQLClient, lmtp_client: SmtpTestClient, dovecot_account: DovecotAccount
) -> None:
    await ROUTES[route](ada, lmtp_client, dovecot_account)
    for fields in (COLUMN_FIELDS, ALL_FIELDS):
        for order in ("RECEIVED_AT_ASC", "RECEIVED_AT_DESC"):  # The first page runs without a plan.
            assert len(await load_messages(ada, fields, order=order)) == len(
                messages_for_route(route)
            )
    messages = await load_messages(ada)
    dates = {message["subject"]: message["date"] for message in messages}
    expected = {f"Dated {nth}": at for nth, at in enumerate(DATE_FIELDS.values()) if at is not ...}
    assert {subject: dates[subject] for subject in expected} == expected


def parse_instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


FILTER_BOUNDS = (
    MIN_DATE,
    "0001-01-01T00:00:01Z",
    "2024-06-01T00:00:00Z",
    MAX_DATE,
    "9999-12-31T23:59:59.999999Z",
)


async def test_date_filters_match_shown_dates(ada: GraphQLClient) -> None:
    for nth, raw in enumerate(MESSAGES.values()):
        if nth < len(DATE_FIELDS):
            arguments = {"mailbox": {"path": "INBOX"}, "raw": base64.b64encode(raw).decode()}
            assert (await run_message_mutation(ada, "messageImport", **arguments))["errors"] == []
    dates = {
        message["id"]: message["date"] and parse_instant(message["date"])
        for message in await load_messages(ada)
    }
    for case in each_case(
        (bound, name, is_before)
        for bound in FILTER_BOUNDS
        for name, is_before in (("sentBefore", True), ("sentSince", False))
    ):
        with case as (bound, name, is_before):
            matching_ids = {
                message["id"] for message in await load_messages(ada, filter={name: {"at": bound}})
            }
            expected = {
                message_id
                for message_id, at in dates.items()
                if at and (at < parse_instant(bound)) is is_before
            }
            assert matching_ids == expected


@pytest.mark.parametrize("at", [MIN_DATE, MAX_DATE, "9999-12-31T23:59:59.999999Z"])
async def test_received_dates_at_calendar_limits_are_listed_in_order(
    ada: GraphQLClient, at: str
) -> None:
    uploaded = await run_message_mutation(
        ada, "messageImport", mailbox={"path": "INBOX"}, raw="Subject: now\n\nx\n"
    )
    assert uploaded["errors"] == []
    arguments = {"mailbox": {"path": "INBOX"}, "raw": "Subject: then\n\nx\n", "receivedAt": at}
    answer = await run_message_mutation(ada, "messageImport", **arguments)
    assert (answer["errors"], answer["messages"][0]["receivedAt"]) == ([], at)
    for order, is_then_first in (
        ("RECEIVED_AT_ASC", at == MIN_DATE),
        ("RECEIVED_AT_DESC", at != MIN_DATE),
    ):
        for first_page in (1, 2):
            query = MESSAGES_QUERY.replace("first: 100", f"first: {first_page}").replace(
                "SHOWN", COLUMN_FIELDS
            )
            subjects, after = [], None
            for _ in range(3 - first_page):
                answer = await ada(query, order=order, after=after)
                page = answer["viewer"]["user"]["messages"]
                subjects += [message["subject"] for message in page["nodes"]]
                after = page["pageInfo"]["endCursor"]
            assert subjects == (["then", "now"] if is_then_first else ["now", "then"])


async def test_infinite_dates_in_database_are_readable(
    ada: GraphQLClient, environment: Environment
) -> None:
    if environment.database.dialect != "postgresql":
        pytest.skip("SQLite has no infinite dates")
    for subject in ("past", "future"):
        arguments = {"mailbox": {"path": "INBOX"}, "raw": f"Subject: {subject}\n\nx\n"}
        assert (await run_message_mutation(ada, "messageImport", **arguments))["errors"] == []
    async with environment.write_session() as session:
        for subject, value in (("past", "-infinity"), ("future", "infinity")):
            statement = f"UPDATE messages SET date = '{value}' WHERE subject = '{subject}'"  # noqa: S608
            await (await session.connection()).execute(text(statement))
    for fields in (COLUMN_FIELDS, ALL_FIELDS):
        dates = {
            message["subject"]: message["date"] for message in await load_messages(ada, fields)
        }
        assert dates == {"past": MIN_DATE, "future": "9999-12-31T23:59:59.999999Z"}


@pytest.mark.parametrize("export_format", ["MBOX", "EML_ZIP", "MAILDIR_TAR", "JSON"])
async def test_received_dates_at_calendar_limits_are_exported(
    ada: GraphQLClient, bob: GraphQLClient, export_format: str
) -> None:
    dates = {"first": MIN_DATE, "last": MAX_DATE}
    for subject, at in dates.items():
        await store_raw_message(ada, raw_message(subject), at=parse_instant(at))
    export = await export_account(ada, format=export_format)
    if export_format == "MBOX":
        assert export["content"].count(b"\nSubject: ") == len(dates)
        return
    task = await import_export(bob, export["content"])
    assert (task["state"], task["error"]) == ("SUCCEEDED", None)
    assert {
        message["subject"]: message["receivedAt"] for message in await load_messages(bob)
    } == dates
