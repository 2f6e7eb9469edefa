"""Header values at the edges of what a column holds: stored, listed, filtered and sorted."""

import base64
import re
from collections.abc import Mapping
from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import text

from models.admin.tasks import TaskState
from models.runtime.environment import Environment
from tests.conftest import Client, raw_message
from tests.support.accounts.account_exports import exported, place
from tests.support.accounts.account_exports import imported as brought
from tests.support.accounts.import_runs import eml_zip, imported
from tests.support.mail_servers.lmtp_client import Neighbour
from tests.support.operations.bulk_operations import call
from tests.support.operations.connector_operations import connector, far, ran, server
from tests.support.run_scope import ALL
from tests.support.servers.dovecot_server import DovecotAccount

__all__ = ["far", "server"]

FIRST = "0001-01-01T00:00:00Z"
LAST = "9999-12-31T23:59:59Z"
DATES = {  # the instant that RFC 5322 gives it; None: it has none within the calendar
    "Mon, 1 Jan 0001 00:00:00 +0000": FIRST,
    "Mon, 1 Jan 0001 00:00:00 -0000": FIRST,
    "1 Jan 0001 00:00:01 +0000": "0001-01-01T00:00:01Z",
    "1 Jan 0001 00:00:00 +2359": None,
    "1 Jan 0001 23:59:00 +2359": FIRST,
    "1 Jan 0001 00:00:00 -2359": "0001-01-01T23:59:00Z",
    "31 Dec 0000 00:01:00 -2359": None,
    "1 Jan 0000 00:00:00 +0000": None,
    "31 Dec 9999 23:59:59 +0000": LAST,
    "31 Dec 9999 23:59:60 +0000": LAST,
    "31 Dec 9999 23:59:59.999999 +0000": LAST,
    "31 Dec 9999 23:59:59 -0001": None,
    "31 Dec 9999 00:00:00 -2359": "9999-12-31T23:59:00Z",
    "31 Dec 9999 23:59:59 +2359": "9999-12-31T00:00:59Z",
    "1 Jan 10000 00:00:00 +0000": None,
    "9999-12-31T23:59:59.999999+00:00": "9999-12-31T23:59:59.999999Z",
    "0001-01-01T00:00:00+00:00": FIRST,
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
}  # ...: some instant or none
TEXTS = {
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
FIELDS = {
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

SHOWN = """id subject date receivedAt savedAt intro messageId inReplyTo references
contentType { value }
from { name address } sender { name address } replyTo { name address } to { name address }
cc { name address } bcc { name address } envelope { from rcpt { formatted } }
list { listId unsubscribe unsubscribeUrl unsubscribeOneClick }
attachments { filename contentType cid size disposition transferEncoding }
spam { score requiredScore action } verification { spf dkim dmarc arc authenticationResults }
headers { key value raw } headersText envelopeImap bodyStructureImap text html
thread { subject lastReceivedAt participants { name address } messages(first: 5) { totalCount } }
structure { contentType { value } filename cid parts { filename } }"""
PLAIN = "id subject date receivedAt savedAt from { name address }"  # by columns alone
ASKED = """query ($filter: MessageFilter, $order: MessageOrder, $after: String) {
  viewer { user { messages(first: 100, filter: $filter, orderBy: $order, after: $after) {
    nodes { SHOWN } totalCount pageInfo { endCursor hasNextPage } } } } }"""


def letters() -> dict[str, bytes]:
    """All messages, by a number that is found in their body."""
    made = [
        raw_message(f"Dated {nth}", Date=date).replace(b"\r\n\r\n", b"\r\n\r\n", 1)
        for nth, date in enumerate(DATES)
    ]
    for template in FIELDS.values():
        for value in TEXTS.values():
            field = template.replace(b"%s", b"\xff\xfe").replace(b"%%", b"%")
            field = field.replace(b"\xff\xfe", value)
            names = [name.lower() for name in re.findall(rb"^([\w-]+):", field, re.MULTILINE)]
            kept = [
                line
                for line in raw_message("Odd").split(b"\r\n\r\n")[0].split(b"\r\n")
                if line.partition(b":")[0].lower() not in names
            ]
            made.append(b"\r\n".join([*kept, field, b"", b"Hi there.", b""]))
    return {f"n{nth}": raw + f"n{nth}\r\n".encode() for nth, raw in enumerate(made)}


LETTERS = letters()


def some(way: str) -> dict[str, bytes]:
    """All dates, and of the other messages a third for each way but LMTP; `ALL_TESTS` takes all.

    There are 17 values for each field, so each third has all fields and all values.
    """
    if ALL or way == "LMTP":
        return LETTERS
    third = list(WAYS).index(way) % 3
    numbered = enumerate(LETTERS.items())
    return {name: raw for nth, (name, raw) in numbered if nth < len(DATES) or nth % 3 == third}


async def by_lmtp(ada: Client, neighbour: Neighbour, _far: DovecotAccount) -> None:
    for raw in some("LMTP").values():
        await neighbour.begin(ada.address)
        neighbour.send(raw + b".\r\n")
        assert (await neighbour.hear()).startswith("250")


async def by_upload(ada: Client, _neighbour: Neighbour, _far: DovecotAccount) -> None:
    for raw in some("upload").values():
        given = {"mailbox": {"path": "INBOX"}, "raw": base64.b64encode(raw).decode()}
        assert (await call(ada, "messageUpload", **given))["errors"] == []


async def by_import(ada: Client, _neighbour: Neighbour, _far: DovecotAccount) -> None:
    letters = some("import")
    one = await imported(ada, eml_zip({f"{name}.eml": raw for name, raw in letters.items()}))
    assert (one["state"], int(one["imported"])) == ("SUCCEEDED", len(letters)), one["log"]


async def by_connector(ada: Client, _neighbour: Neighbour, far: DovecotAccount) -> None:
    letters = list(some("connector").values())
    far.save_messages(letters)
    run = await ran(ada.world, await connector(ada, far))
    assert (run.state, run.imported) == (TaskState.SUCCEEDED, len(letters)), run.log


WAYS = {"LMTP": by_lmtp, "upload": by_upload, "import": by_import, "connector": by_connector}


async def listed(client: Client, shown: str = PLAIN, **variables: Any) -> list[Mapping[str, Any]]:
    """All messages of a user, page by page."""
    found: list[Mapping[str, Any]] = []
    after = None
    while True:
        answer = await client(ASKED.replace("SHOWN", shown), after=after, **variables)
        page = answer["viewer"]["user"]["messages"]
        assert page["totalCount"] is not None
        found += page["nodes"]
        if not page["pageInfo"]["hasNextPage"]:
            return found
        after = page["pageInfo"]["endCursor"]


@pytest.mark.parametrize("way", WAYS)
async def test_messages_with_any_header_value_are_stored_and_listed(
    way: str, ada: Client, neighbour: Neighbour, far: DovecotAccount
) -> None:
    await WAYS[way](ada, neighbour, far)
    for shown in (PLAIN, SHOWN):
        for order in ("RECEIVED_ASC", "RECEIVED_DESC"):  # the first page runs without a plan
            assert len(await listed(ada, shown, order=order)) == len(some(way))
    found = await listed(ada)
    dates = {one["subject"]: one["date"] for one in found}
    expected = {f"Dated {nth}": at for nth, at in enumerate(DATES.values()) if at is not ...}
    assert {subject: dates[subject] for subject in expected} == expected


def instant(text: str) -> datetime:
    return datetime.fromisoformat(text)


@pytest.mark.parametrize(
    "bound",
    [FIRST, "0001-01-01T00:00:01Z", "2024-06-01T00:00:00Z", LAST, "9999-12-31T23:59:59.999999Z"],
)
async def test_filters_by_date_agree_with_the_dates_shown(ada: Client, bound: str) -> None:
    for nth, raw in enumerate(LETTERS.values()):
        if nth < len(DATES):
            given = {"mailbox": {"path": "INBOX"}, "raw": base64.b64encode(raw).decode()}
            assert (await call(ada, "messageUpload", **given))["errors"] == []
    dates = {one["id"]: one["date"] and instant(one["date"]) for one in await listed(ada)}
    for name, is_before in (("sentBefore", True), ("sentSince", False)):
        found = {one["id"] for one in await listed(ada, filter={name: {"at": bound}})}
        expected = {k for k, at in dates.items() if at and (at < instant(bound)) is is_before}
        assert found == expected, name


@pytest.mark.parametrize("at", [FIRST, LAST, "9999-12-31T23:59:59.999999Z"])
async def test_arrivals_at_the_ends_of_the_calendar_are_listed_in_order(
    ada: Client, at: str
) -> None:
    boxes = await call(ada, "messageUpload", mailbox={"path": "INBOX"}, raw="Subject: now\n\nx\n")
    assert boxes["errors"] == []
    given = {"mailbox": {"path": "INBOX"}, "raw": "Subject: then\n\nx\n", "receivedAt": at}
    answer = await call(ada, "messageUpload", **given)
    assert (answer["errors"], answer["message"]["receivedAt"]) == ([], at)
    for order, first in (("RECEIVED_ASC", at == FIRST), ("RECEIVED_DESC", at != FIRST)):
        for first_page in (1, 2):
            asked = ASKED.replace("first: 100", f"first: {first_page}").replace("SHOWN", PLAIN)
            found, after = [], None
            for _ in range(3 - first_page):
                answer = await ada(asked, order=order, after=after)
                page = answer["viewer"]["user"]["messages"]
                found += [one["subject"] for one in page["nodes"]]
                after = page["pageInfo"]["endCursor"]
            assert found == (["then", "now"] if first else ["now", "then"])


async def test_a_store_that_holds_infinite_dates_is_readable(
    ada: Client, world: Environment
) -> None:
    if world.database.dialect != "postgresql":
        pytest.skip("SQLite has no infinite dates")
    for subject in ("past", "future"):
        given = {"mailbox": {"path": "INBOX"}, "raw": f"Subject: {subject}\n\nx\n"}
        assert (await call(ada, "messageUpload", **given))["errors"] == []
    async with world.write_session() as session:
        for subject, value in (("past", "-infinity"), ("future", "infinity")):
            this = f"UPDATE messages SET date = '{value}' WHERE subject = '{subject}'"  # noqa: S608
            await (await session.connection()).execute(text(this))
    for shown in (PLAIN, SHOWN):
        found = {one["subject"]: one["date"] for one in await listed(ada, shown)}
        assert found == {"past": FIRST, "future": "9999-12-31T23:59:59.999999Z"}


@pytest.mark.parametrize("form", ["MBOX", "EML_ZIP", "MAILDIR_TAR", "JSON"])
async def test_arrivals_at_the_ends_of_the_calendar_are_exported(
    ada: Client, bob: Client, form: str
) -> None:
    ends = {"first": FIRST, "last": LAST}
    for subject, at in ends.items():
        await place(ada, raw_message(subject), at=instant(at))
    done = await exported(ada, format=form)
    if form == "MBOX":
        assert done["content"].count(b"\nSubject: ") == len(ends)
        return
    task = await brought(bob, done["content"])
    assert (task["state"], task["error"]) == ("SUCCEEDED", None)
    assert {one["subject"]: one["receivedAt"] for one in await listed(bob)} == ends
