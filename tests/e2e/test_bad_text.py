"""Texts that no store or mail can hold, in every place that takes text."""

import json
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from tests.conftest import raw_message
from tests.e2e.server import PASSWORD, Client, Server

PLACES: dict[str, str] = {  # a document for each place; $it is the text
    "node": "query ($it: ID!) { node(id: $it) { id } }",
    "nodes": "query ($it: ID!) { nodes(ids: [$it]) { id } }",
    "thread": "query ($it: ID!) { thread(id: $it) { id } }",
    "task": "query ($it: ID!) { task(id: $it) { id } }",
    "guid": "query ($it: String!) { message(by: {guid: $it}) { id } }",
    "queueId": "query ($it: String!) { submission(by: {queueId: $it}) { id } }",
    "username": "query ($it: String!) { user(by: {username: $it}) { id } }",
    "address": "query ($it: EmailAddress!) { user(by: {address: $it}) { id } }",
    "path": "query ($it: String!) { mailbox(by: {path: $it}) { id } }",
    "path of uid": "query ($it: String!) "
    "{ message(by: {uid: {mailbox: {path: $it}, uid: 1}}) { id } }",
    "after": "query ($it: String!) { apiKeys(first: 2, after: $it) { totalCount } }",
    "addresses": "query ($it: String!) "
    "{ viewer { user { addresses(query: $it) { nodes { id } totalCount } } } }",
    "users": "query ($it: String!) { users(filter: {query: $it}) { nodes { id } totalCount } }",
    "domain": "query ($it: String!) { users(filter: {domain: $it}) { nodes { id } totalCount } }",
    "tasks": "query ($it: String!) { tasks(filter: {kind: $it}) { nodes { id } totalCount } }",
    "header": "query ($it: String!) "
    "{ viewer { user { messages { nodes { header(name: $it) } } } } }",
    "part": "query ($it: String!) { viewer { user { messages "
    "{ nodes { bodyPart(section: $it) binaryPart(section: $it) } } } } }",
    **{
        f"filter {name}": f"query ($it: {kind}!) {{ viewer {{ user {{ messages(filter: "
        f"{{{field}}}) {{ nodes {{ id }} totalCount }} }} }} }}"
        for name, kind, field in (
            ("query", "String", "query: $it"),
            ("subject", "String", "subject: $it"),
            ("from", "String", "from: $it"),
            ("to", "String", "to: $it"),
            ("keyword", "String", "keyword: $it"),
            ("messageId", "String", "messageId: $it"),
            ("uids", "String", "uids: $it"),
            ("thread", "ID", "thread: $it"),
            ("path", "String", "mailbox: {path: $it}"),
            ("and", "String", "and: [{not: {subject: $it}}]"),
            ("or", "String", "or: [{query: $it}, {from: $it}]"),
        )
    },
    **{
        name: f"mutation ($it: String!) {{ {name.split()[0]}(input: {{{given}}}) "
        "{ errors { code path } } }"
        for name, given in {
            "mailboxCreate": "paths: [$it]",
            "mailboxCreate below": 'paths: ["Good", $it]',
            "mailboxRename": 'mailbox: {path: "Old"}, newPath: $it',
            "mailboxDelete": "mailboxes: [{path: $it}]",
            "messageMove": 'select: {mailbox: {path: "INBOX"}}, to: {path: $it}',
            "messageMove uids": 'select: {mailbox: {path: "INBOX"}, uids: $it}, to: {path: "Trash"}',
            "messageUpdate": 'select: {mailbox: {path: "INBOX"}}, set: {addFlags: [$it]}',
            "messageUpdate filter": 'select: {filter: {query: $it}}, set: {seen: true}',
            "messageUpload": 'mailbox: {path: "INBOX"}, raw: $it',
            "messageSend subject": f'{(to := "to: [{address: \"x@far.example\"}]")}, subject: $it',
            "messageSend text": f"{to}, text: $it, html: $it",
            "messageSend name": 'to: [{address: "x@far.example", name: $it}], text: "a"',
            "messageSend address": 'to: [{address: $it}], text: "a"',
            "messageSend from": f'{to}, from: {{address: "ada@example.org", name: $it}}',
            "messageSend envelope": f"{to}, envelope: {{to: [{{address: $it}}]}}",
            "messageSend key": f'{to}, headers: [{{key: $it, value: "a"}}]',
            "messageSend value": f'{to}, headers: [{{key: "X-A", value: $it}}]',
            "messageSend file": f'{to}, attachments: [{{content: "", filename: $it}}]',
            "messageSend cid": f'{to}, attachments: [{{content: "", cid: $it}}]',
            "messageSend kind": f'{to}, attachments: [{{content: "", contentType: $it}}]',
            "messageSend content": f"{to}, attachments: [{{content: $it, encoding: UTF8}}]",
            "messageSend draft": f"{to}, isDraft: true, mailbox: {{path: $it}}",
            "undo": "token: $it",
            "apiKeyCreate": "name: $it",
            "userCreate username": 'username: $it, address: "u1@example.org", passwordDisabled: true',
            "userCreate address": 'username: "u2", address: $it, passwordDisabled: true',
            "userCreate password": 'username: "u3", emptyAddress: true, password: $it',
            "userCreate name": 'username: "u4", emptyAddress: true, passwordDisabled: true, name: $it',
            "userCreate tags": 'username: "u5", emptyAddress: true, passwordDisabled: true, tags: [$it]',
            "userCreate language": "username: \"u6\", emptyAddress: true, passwordDisabled: true, language: $it",
            "userCreate folders": "username: \"u7\", emptyAddress: true, passwordDisabled: true, mailboxes: {sent: $it}",
            "authenticate username": 'username: $it, password: "wrong"',
            "authenticate password": 'username: "eve", password: $it',
            "authenticate protocol": 'username: "eve", password: "wrong", protocol: $it',
            "mailboxCreate key": 'paths: ["Keyed"], options: {idempotencyKey: $it}',
            "mailboxCreate session": 'paths: ["Session"], options: {sessionId: $it}',
            "mailboxCreate reason": 'paths: ["Reason"], options: {reason: $it}',
        }.items()
    },
    "metaData": 'mutation ($it: JSON!) { messageUpdate(input: {select: {mailbox: {path: "INBOX"}}, '
    "set: {metaData: {a: $it}}}) { errors { code } } }",
    "rawUpload": 'mutation ($it: Upload!) { messageUpload(input: {mailbox: {path: "INBOX"}, '
    "rawUpload: $it}) { errors { code } } }",
}
TEXTS = {
    "NUL": "\0",
    "NUL inside": "a\0b",
    "NUL in an address": "a\0b@example.org",
    "line ends": "a\r\nBcc: eve@far.example\r\n\r\nx",
    "a noncharacter": "\uffff\U0010ffff",
    "control": "\x01\x7f\x85\u2028",
    "long": "Ä" * 20_000,
    "slashes": "/".join("a" * 300),
    "a number": "9" * 400,
}


def _codes(answer: Any) -> list[str]:
    """Codes of all errors, in whichever place they stand."""
    found = [error["extensions"]["code"] for error in answer.get("errors", [])]
    for payload in (answer.get("data") or {}).values():
        if isinstance(payload, dict):
            found += [error["code"] for error in payload.get("errors") or []]
    return found


@pytest.mark.parametrize("text", TEXTS)
async def test_every_place_that_takes_text_takes_this_or_refuses_it(
    server: Server, text: str
) -> None:
    await server.deliver(raw_message(f"About {text}"), "ada@example.org")
    broken: dict[str, Any] = {}
    async with server.client("ada") as ada, server.client("root") as root:
        for place, document in PLACES.items():
            asked: Client = root if place.startswith("user") else ada
            answer = await asked.post({"query": document, "variables": {"it": TEXTS[text]}})
            codes = _codes(answer.json())
            if answer.status_code >= 500 or "INTERNAL_SERVER_ERROR" in codes:
                broken[place] = answer.text
            if "\0" in TEXTS[text] and place.startswith(("mailbox", "messageSend")) and not codes:
                broken[place] = "a NUL was taken"
    assert not broken


async def test_bytes_and_addresses_with_nul_are_refused(server: Server, tmp_path: Path) -> None:
    async with server.client("ada") as ada:
        for path in ("/rest/messages/%00/message.eml", "/rest/messages/a%00b/parts/%00"):
            assert (await ada.http.get(path)).status_code == 404
        shown = "{ viewer { user { messages(first: 1) { nodes { id sourceUrl } } } } }"
        (message,) = (await ada(shown))["viewer"]["user"]["messages"]["nodes"]
        for part in ("%00", "1%00", "9" * 99, quote("٣"), "..%2f..", "-1"):
            for kind in ("parts", "attachments"):
                answer = await ada.http.get(f"/rest/messages/{message['id']}/{kind}/{part}")
                assert answer.status_code == 404, part
        for query in ("?sig=%00", "?sig=a&expires=%00", "?expires=" + "9" * 99 + "&sig=a"):
            path = message["sourceUrl"].partition("?")[0] + query
            assert (await ada.http.get(path)).status_code in {401, 403, 404}, query
        name = {"Content-Disposition": "attachment; filename*=UTF-8''a%00b%0d%0a%ED%A0%80.txt"}
        kind = {"Content-Type": "text/plain; a=\x7f"}
        answer = await ada.http.post("/rest/uploads", content=b"a\0b", headers={**name, **kind})
        assert answer.status_code == 201
        given = {"mailbox": {"path": "INBOX"}, "rawUpload": answer.json()["id"]}
        document = (
            "mutation ($input: MessageUploadInput!) { it: messageUpload(input: $input) "
            "{ message { subject text } errors { code } } }"
        )
        assert "INTERNAL_SERVER_ERROR" not in str(await ada.raw(document, input=given))


async def test_lmtp_refuses_nul_in_commands_and_mail(server: Server) -> None:
    neighbour = await server.neighbour()
    assert (await neighbour.say("MAIL FROM:<a\0@b>")).startswith("500 5.5.2")
    assert (await neighbour.say(b"MAIL FROM:<\xff@b>")).startswith("500 5.5.2")
    assert (await neighbour.say("NOOP \0")).startswith("500 5.5.2")
    await neighbour.begin("ada@example.org")
    neighbour.send(b"Subject: a\0b\r\n\r\nx\0y\r\n.\r\n")
    assert await neighbour.hear() == "554 5.6.0 A message has no NUL bytes"
    await neighbour.close()


async def test_nothing_half_stored_and_nothing_told_to_the_log(server: Server) -> None:
    report = server.command("check")
    assert (report.code, json.loads(report.out)["findings"]) == (0, [])
    words = [PASSWORD, "example.org", "far.example", "Bcc", "About", "mgk_", "wrong"]
    log = server.log
    assert [word for word in words if word in log] == []
    loud = [line for line in server.logged() if line["level"] != "info"]
    assert loud == []
