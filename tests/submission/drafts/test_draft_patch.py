"""What a patch of a draft changes, keeps and clears."""

import email
from email import policy
from typing import Any

import pytest

from graph.types import global_ids
from tests.conftest import GraphQLClient, deliver_to, raw_message
from tests.support.case_loop import each_case
from tests.support.operations.message_sources import (
    FILE_A,
    FILE_B,
    create_draft,
    import_message,
    load_message_source,
    names_and_addresses,
    parse_stored_message,
    save_draft,
)

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def read_fields(client: GraphQLClient, draft: Any) -> dict[str, Any]:
    """Read what the fields of a draft say, without those that each save changes."""
    raw = await load_message_source(client, draft["id"])
    message = email.message_from_string(raw, policy=policy.SMTPUTF8)
    names = ("From", "To", "Cc", "Bcc", "Reply-To", "Subject", "X-Priority", "X-Tag", "Message-ID")
    values: dict[str, Any] = {name: message.get_all(name) for name in names}
    for part in message.walk():
        if not part.is_multipart():
            values[part.get_filename() or part.get_content_type()] = part.get_content()
    return values


FULL_DRAFT: dict[str, Any] = {
    "from": {"address": "ada@example.org", "name": "Ada, \u00dcnal"},
    "to": [{"address": "carol@example.net", "name": "Carol \u00dc"}],
    "cc": [{"address": "dan@example.net"}],
    "bcc": [{"address": "eve@example.net"}],
    "replyTo": [{"address": "desk@example.net", "name": "Desk"}],
    "subject": "D\u00fccks  and geese, = ?",
    "text": "Gr\u00fc\u00dfe \n\n-- \nAda",
    "html": "<p>Gr\u00fc\u00dfe</p>",
    "headers": [{"name": "X-Tag", "value": "one \u00fc"}, {"name": "X-Tag", "value": "two"}],
    "priority": "HIGH",
    "addAttachments": [FILE_A, FILE_B],
}


PATCHES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"subject": "Geese"}, {"Subject": ["Geese"]}),
    ({"subject": None}, {"Subject": [""]}),
    ({"to": None}, {"To": None}),
    ({"cc": []}, {"Cc": None}),
    ({"bcc": None}, {"Bcc": None}),
    ({"replyTo": None}, {"Reply-To": None}),
    ({"headers": None}, {"X-Tag": None}),
    ({"priority": None}, {"X-Priority": None}),
    ({"from": None}, {"From": ["ada@example.org"]}),
    ({"text": "Bye.\n"}, {"text/plain": "Bye.\n"}),
    ({"html": "<p>Bye.</p>"}, {"text/plain": "Bye.", "text/html": "<p>Bye.</p>"}),
    ({"html": None}, {"text/html": ...}),
    ({"metadata": {"a": 1}}, {}),
]


async def test_patch_changes_only_its_fields(ada: GraphQLClient) -> None:
    for case in each_case(PATCHES):
        with case as (patch, changed):
            draft = await create_draft(ada, **FULL_DRAFT)
            expected = await read_fields(ada, draft)
            for name, value in changed.items():
                if value is ...:
                    del expected[name]
                else:
                    expected[name] = value
            for _ in range(3):
                answer = await save_draft(ada, draft={"id": draft["id"]}, **patch)
                assert answer["errors"] == []
                assert answer["message"]["id"] == draft["id"]
                found = await read_fields(ada, draft)
                for values in (found, expected):
                    values["text/plain"] = values["text/plain"].rstrip("\r\n")
                assert found == expected


async def test_null_clears_metadata_and_absence_keeps_it(ada: GraphQLClient) -> None:
    draft = await create_draft(ada, metadata={"a": 1})
    assert draft["metadata"] == {"a": 1}
    kept = await save_draft(ada, draft={"id": draft["id"]}, subject="x")
    assert kept["message"]["metadata"] == {"a": 1}
    cleared = await save_draft(ada, draft={"id": draft["id"]}, metadata=None)
    assert (cleared["errors"], cleared["message"]["metadata"]) == ([], None)


async def test_save_without_changes_is_refused(ada: GraphQLClient) -> None:
    draft = await create_draft(ada)
    answer = await save_draft(ada, draft={"id": draft["id"]})
    assert [(e["code"], e["path"]) for e in answer["errors"]] == [("VALIDATION", ["set"])]
    assert (await save_draft(ada))["errors"] == []  # a new draft can be empty


async def test_save_after_other_change_is_stale(ada: GraphQLClient) -> None:
    draft = await create_draft(ada, addAttachments=[FILE_A, FILE_B])
    condition = {"draft": {"id": draft["id"]}, "ifUnchangedSince": draft["imap"]["modseq"]}
    saved = await save_draft(ada, **condition, subject="One")
    assert saved["errors"] == []
    removed = [{"id": draft["attachments"][0]["id"]}]
    for patch in ({"subject": "Two"}, {"removeAttachments": removed}):
        refused = await save_draft(ada, **condition, **patch)
        assert [(e["code"], e["path"]) for e in refused["errors"]] == [
            ("STALE", ["ifUnchangedSince"])
        ]
    condition["ifUnchangedSince"] = saved["message"]["imap"]["modseq"]
    assert (await save_draft(ada, **condition, removeAttachments=removed))["errors"] == []


async def test_header_change_keeps_body_byte_for_byte(ada: GraphQLClient) -> None:
    body = (
        'Content-Type: multipart/mixed; boundary="b"\r\nMIME-Version: 1.0\r\n\r\npreamble\r\n'
        "--b\r\nContent-Type: text/calendar; method=REQUEST\r\n\r\nBEGIN:VCALENDAR\r\n"
        "--b\r\nContent-Type: message/rfc822\r\n\r\nSubject: in\r\n\r\nx\r\n--b--\r\nend\r\n"
    )
    raw = "Subject: old\r\nFrom: ada@example.org\r\n" + body
    draft = (await import_message(ada, raw=raw, draft=True))["message"]
    assert (await save_draft(ada, draft={"id": draft["id"]}, subject="new"))["errors"] == []
    source = await load_message_source(ada, draft["id"])
    assert source.endswith(body)
    assert "Subject: new\r\n" in source


async def test_attached_message_stays_a_message(ada: GraphQLClient) -> None:
    message_id = global_ids.encode(
        "Message", (await deliver_to(ada, raw_message("Plans"))).message_id
    )
    source = {"message": {"id": message_id}, "relation": "FORWARD", "includeMessage": True}
    draft = await create_draft(ada, original=source)
    for text in ("one", "two"):
        answer = await save_draft(ada, draft={"id": draft["id"]}, text=text)
        message = await parse_stored_message(ada, answer)
        types = [part.get_content_type() for part in message.iter_attachments()]
        assert types == ["message/rfc822"]


async def test_changed_sender_replaces_fields_of_earlier_identity(ada: GraphQLClient) -> None:
    document = """mutation ($input: IdentityCreateInput!) {
      identityCreate(input: $input) { identity { id } errors { code path } } }"""
    identity = {
        "address": "ada@example.org", "name": "Desk", "replyTo": "desk@example.org",
        "bcc": ["archive@example.net"],
    }  # fmt: skip
    created = (await ada(document, input=identity))["identityCreate"]
    assert created["errors"] == []
    by_identity = {"identity": {"id": created["identity"]["id"]}}
    draft = await create_draft(ada, **by_identity)
    to = {"to": [{"address": "carol@example.net"}]}
    answer = await save_draft(ada, draft={"id": draft["id"]}, **to)
    message = await parse_stored_message(ada, answer)
    assert names_and_addresses(message, "Bcc") == [("", "archive@example.net")]
    assert names_and_addresses(message, "Reply-To") == [("", "desk@example.org")]
