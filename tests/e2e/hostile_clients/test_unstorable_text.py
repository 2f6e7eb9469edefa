"""Tests of text that a database or a message can't hold, in every argument that takes text."""

import json
from typing import Any
from urllib.parse import quote

import pytest

from tests.conftest import raw_message
from tests.support.servers.merganser_server import PASSWORD, HttpClient, MerganserProcess

FIELDS_BY_NAME = {  # fields with the text as $it, after the type of the variable
    "node": ("ID", "node(id: $it) { id }"),
    "nodes": ("ID", "nodes(ids: [$it]) { id }"),
    "thread": ("ID", "thread(by: {id: $it}) { id }"),
    "task": ("ID", "task(by: {id: $it}) { id }"),
    "emailId": ("String", "message(by: {emailId: $it}) { id }"),
    "queueId": ("String", "submission(by: {queueId: $it}) { id }"),
    "username": ("String", "user(by: {username: $it}) { id }"),
    "address": ("EmailAddress", "user(by: {address: $it}) { id }"),
    "path": ("String", "mailbox(by: {path: $it}) { id }"),
    "uid": ("String", "message(by: {uid: {mailbox: {path: $it}, uid: 1}}) { id }"),
    "after": ("String", "apiKeys(first: 2, after: $it) { totalCount }"),
    "addresses": (
        "String",
        "viewer { user { addresses(filter: {query: $it}) { nodes { id } totalCount } } }",
    ),
    "users": ("String", "users(filter: {query: $it}) { nodes { id } totalCount }"),
    "users of domain": (
        "String",
        "users(filter: {domain: {name: $it}}) { nodes { id } totalCount }",
    ),
    "keyValue": ("String", "keyValue(by: {name: {key: $it}}) { value }"),
    "keyValue of a store": ("String", 'keyValue(by: {name: {key: "a", store: $it}}) { value }'),
    "keyValues": (
        "String",
        "keyValues(filter: {prefix: $it, recursive: true}) { totalCount nodes { key } }",
    ),
    "header": ("String", "viewer { user { messages { nodes { header(name: $it) } } } }"),
    "bodyPart": ("String", "viewer { user { messages { nodes { bodyPart(section: $it) } } } }"),
    "binaryPart": ("String", "viewer { user { messages { nodes { binaryPart(section: $it) } } } }"),
}
FILTERS_BY_NAME = {
    "query": "query: $it",
    "subject": "subject: $it",
    "from": "from: $it",
    "to": "to: $it",
    "keyword": "keyword: $it",
    "messageIdHeader": "messageIdHeader: $it",
    "uids": "uids: $it",
    "mailbox": "mailbox: {path: $it}",
    "and": "and: [{not: {subject: $it}}]",
    "or": "or: [{query: $it}, {from: $it}]",
}
TO_FIELD = 'to: [{address: "x@far.example"}]'
NEW_USER_FIELDS = "emptyAddress: true, passwordDisabled: true"
INPUTS_BY_MUTATION = {  # inputs of the mutation that is named before the dot
    "mailboxCreate.path": "paths: [$it]",
    "mailboxCreate.paths": 'paths: ["Good", $it]',
    "mailboxRename.path": 'mailbox: {path: "Old"}, newPath: $it',
    "mailboxDelete.path": "mailboxes: [{path: $it}]",
    "messageMove.path": 'select: {mailbox: {path: "INBOX"}}, to: {path: $it}',
    "messageMove.uids": 'select: {mailbox: {path: "INBOX"}, uids: $it}, to: {path: "Trash"}',
    "messageUpdate.flag": 'select: {mailbox: {path: "INBOX"}}, set: {addFlags: [$it]}',
    "messageUpdate.filter": "select: {filter: {query: $it}}, set: {seen: true}",
    "messageImport.raw": 'mailbox: {path: "INBOX"}, raw: $it',
    "messageSend.subject": f"{TO_FIELD}, subject: $it",
    "messageSend.text": f"{TO_FIELD}, text: $it, html: $it",
    "messageSend.name": 'to: [{address: "x@far.example", name: $it}], text: "a"',
    "messageSend.address": 'to: [{address: $it}], text: "a"',
    "messageSend.from": f'{TO_FIELD}, from: {{address: "ada@example.org", name: $it}}',
    "messageSend.envelope": f"{TO_FIELD}, envelope: {{to: [{{address: $it}}]}}",
    "messageSend.headerName": f'{TO_FIELD}, headers: [{{name: $it, value: "a"}}]',
    "messageSend.value": f'{TO_FIELD}, headers: [{{name: "X-A", value: $it}}]',
    "messageSend.file": f'{TO_FIELD}, attachments: [{{content: "", filename: $it}}]',
    "messageSend.contentId": f'{TO_FIELD}, attachments: [{{content: "", contentId: $it}}]',
    "messageSend.kind": f'{TO_FIELD}, attachments: [{{content: "", contentType: $it}}]',
    "messageSend.content": f"{TO_FIELD}, attachments: [{{content: $it, encoding: UTF8}}]",
    "draftSave.subject": "set: {subject: $it, text: $it, html: $it}, mailbox: {path: $it}",
    "keyValueSet.key": 'key: $it, value: "a"',
    "keyValueSet.value": 'key: "a", value: $it',
    "keyValueSet.store": 'key: "a", value: "a", store: $it',
    "keyValueIncrement.key": "key: $it, delta: 1, createMissing: true",
    "keyValueDelete.key": "key: $it, recursive: true",
    "undo.token": "token: $it",
    "apiKeyCreate.name": "name: $it",
    "userCreate.username": 'username: $it, address: "u1@example.org", passwordDisabled: true',
    "userCreate.address": 'username: "u2", address: $it, passwordDisabled: true',
    "userCreate.password": 'username: "u3", emptyAddress: true, password: $it',
    "userCreate.name": f'username: "u4", {NEW_USER_FIELDS}, name: $it',
    "userCreate.tags": f'username: "u5", {NEW_USER_FIELDS}, tags: [$it]',
    "userCreate.language": f'username: "u6", {NEW_USER_FIELDS}, language: $it',
    "userCreate.folders": f'username: "u7", {NEW_USER_FIELDS}, mailboxes: {{sent: $it}}',
    "userCreate.senders": f'username: "u8", {NEW_USER_FIELDS}, allowedSenders: [$it]',
    "userCreate.openpgpPublicKey": f'username: "u9", {NEW_USER_FIELDS}, openpgpPublicKey: $it',
    "userCreate.hash": 'username: "v1", emptyAddress: true, hashedPassword: true, password: $it',
    "userUpdate.name": "set: {name: $it}",
    "userUpdate.language": "set: {language: $it}",
    "userUpdate.openpgpPublicKey": "set: {openpgpPublicKey: $it}",
    "userUpdate.username": 'users: {usernames: [$it]}, set: {name: "x"}',
    "userUpdate.pattern": 'users: {patterns: [$it]}, set: {username: "nobody-there"}',
    "userRoleSet.domain": "users: {usernames: []}, role: DOMAIN_ADMIN, administers: [{name: $it}]",
    "authenticate.username": 'username: $it, password: "wrong"',
    "authenticate.password": 'username: "eve", password: $it',
    "mailboxCreate.key": 'paths: ["Keyed"], options: {idempotencyKey: $it}',
    "mailboxCreate.session": 'paths: ["Session"], options: {sessionId: $it}',
    "mailboxCreate.reason": 'paths: ["Reason"], options: {reason: $it}',
}
ADDRESS_INPUTS = ("messageSend.address", "messageSend.envelope")  # $it is an EmailAddress
INBOX_FIELD = 'mailbox: {path: "INBOX"}'
DOCUMENTS_BY_ARGUMENT = {
    **{
        name: f"query ($it: {kind}!) {{ {field} }}"
        for name, (kind, field) in FIELDS_BY_NAME.items()
    },
    **{
        f"filter.{name}": "query ($it: String!) { viewer { user { messages(filter: "
        f"{{{filter_}}}) {{ nodes {{ id }} totalCount }} }} }} }}"
        for name, filter_ in FILTERS_BY_NAME.items()
    },
    **{
        name: f"mutation ($it: {'EmailAddress' if name in ADDRESS_INPUTS else 'String'}!) "
        f"{{ {name.partition('.')[0]}(input: {{{input_}}}) "
        "{ errors { code path } } }"
        for name, input_ in INPUTS_BY_MUTATION.items()
    },
    "metadata": f"mutation ($it: JSON!) {{ messageUpdate(input: {{select: {{{INBOX_FIELD}}}, "
    "set: {metadata: {a: $it}}}) { errors { code } } }",
    "rawUpload": f"mutation ($it: Upload!) {{ messageImport(input: {{{INBOX_FIELD}, "
    "rawUpload: $it}) { errors { code } } }",
}
TEXTS_BY_NAME = {
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


def _error_codes(result: Any) -> list[str]:
    """Return the codes of all errors of a response and its payloads."""
    codes = [error["extensions"]["code"] for error in result.get("errors", [])]
    for payload in (result.get("data") or {}).values():
        if isinstance(payload, dict):
            codes += [error["code"] for error in payload.get("errors") or []]
    return codes


@pytest.mark.parametrize("text", TEXTS_BY_NAME)
async def test_every_text_argument_accepts_or_refuses_text(
    server: MerganserProcess, text: str
) -> None:
    await server.deliver_by_lmtp(raw_message(f"About {text}"), "ada@example.org")
    failures: dict[str, Any] = {}
    async with server.open_client("ada") as ada, server.open_client("root") as root:
        for argument, document in DOCUMENTS_BY_ARGUMENT.items():
            client: HttpClient = root if argument.startswith("user") else ada
            response = await client.post(
                {"query": document, "variables": {"it": TEXTS_BY_NAME[text]}}
            )
            codes = _error_codes(response.json())
            if response.status_code >= 500 or "INTERNAL_SERVER_ERROR" in codes:
                failures[argument] = response.text
            if "\0" in TEXTS_BY_NAME[text] and codes != ["BAD_USER_INPUT"]:
                failures[argument] = f"a NUL was taken: {response.text}"
    assert not failures, "\n".join(
        f"{argument}: {failure}" for argument, failure in failures.items()
    )


async def test_paths_and_uploads_with_nul_are_refused(server: MerganserProcess) -> None:
    async with server.open_client("ada") as ada:
        for path in ("/rest/messages/%00/message.eml", "/rest/messages/a%00b/parts/%00"):
            assert (await ada.http.get(path)).status_code == 404
        viewer_query = "{ viewer { user { messages(first: 1) { nodes { id sourceUrl } } } } }"
        (message,) = (await ada(viewer_query))["viewer"]["user"]["messages"]["nodes"]
        for part in ("%00", "1%00", "9" * 99, quote("٣"), "..%2f..", "-1"):
            for route in ("parts", "attachments"):
                response = await ada.http.get(f"/rest/messages/{message['id']}/{route}/{part}")
                assert response.status_code == 404, part
        for query in ("?sig=%00", "?sig=a&expires=%00", "?expires=" + "9" * 99 + "&sig=a"):
            path = message["sourceUrl"].partition("?")[0] + query
            assert (await ada.http.get(path)).status_code in {401, 403, 404}, query
        disposition_header = {
            "Content-Disposition": "attachment; filename*=UTF-8''a%00b%0d%0a%ED%A0%80.txt"
        }
        type_header = {"Content-Type": 'text/plain; a="%00'}
        response = await ada.http.post(
            "/rest/uploads", content=b"a\0b", headers={**disposition_header, **type_header}
        )
        assert response.status_code == 201
        upload_input = {"mailbox": {"path": "INBOX"}, "rawUpload": response.json()["id"]}
        document = (
            "mutation ($input: MessageImportInput!) { it: messageImport(input: $input) "
            "{ messages { subject text } errors { code } } }"
        )
        assert "INTERNAL_SERVER_ERROR" not in str(await ada.raw(document, input=upload_input))


async def test_lmtp_refuses_nul_in_commands_and_accepts_it_in_mail(
    server: MerganserProcess,
) -> None:
    lmtp_client = await server.connect_lmtp()
    assert (await lmtp_client.run_command("MAIL FROM:<a\0@b>")).startswith("500 5.5.2")
    assert (await lmtp_client.run_command(b"MAIL FROM:<\xff@b>")).startswith("500 5.5.2")
    assert (await lmtp_client.run_command("NOOP \0")).startswith("500 5.5.2")
    await lmtp_client.start_data("ada@example.org")
    lmtp_client.send_bytes(b"Subject: nul\0nul\r\n\r\nx\0y\r\n.\r\n")
    reply = await lmtp_client.read_reply()
    await lmtp_client.close()
    assert reply.startswith("250 2.0.0 OK: queued as ")
    async with server.open_client("ada") as ada:
        document = "{ viewer { user { messages(first: 100) { nodes { subject text } } } } }"
        nodes = (await ada(document))["viewer"]["user"]["messages"]["nodes"]
    assert {"subject": "nulnul", "text": "x\0y\n"} in nodes


async def test_database_is_consistent_and_log_contains_no_secrets(server: MerganserProcess) -> None:
    report = server.run_command("check")
    assert (report.exit_code, json.loads(report.stdout)["findings"]) == (0, [])
    words = [PASSWORD, "example.org", "far.example", "Bcc", "About", "mgk_", "wrong"]
    log = server.log
    assert [word for word in words if word in log] == []
    assert server.unexpected_log_records() == []
