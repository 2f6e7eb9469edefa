"""Test the options of draftSend: envelope, DSN request, template, mail merge, encryption."""

import asyncio
from typing import Any

import pytest

from graph.types import global_ids
from models.events.event_types import EventType
from models.runtime.environment import Environment
from tests.conftest import GraphQLClient, deliver_to, raw_message
from tests.support.accounts.openpgp_keys import armored_public_key, decrypt_message, make_secret_key
from tests.support.accounts.user_operations import execute_mutation, try_update_users
from tests.support.case_loop import each_case
from tests.support.mail_servers.queue_worker import load_queued_messages
from tests.support.operations.message_sources import import_message, save_draft
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

FIELDS = """submissions { id envelopeFrom state recipients { recipient } }
  messages { id draft subject text html mailbox { path } }
  undo { token } warnings { code }"""
MESSAGE_QUERY = """query ($id: ID!) { message(by: {id: $id}) {
  id draft subject text mailbox { path } attachments { filename } } }"""
TO_CAROL = {"to": [{"address": "carol@example.net"}]}
ATTACHMENT = {"content": "MTsy", "filename": "ducks.csv", "contentType": "text/csv"}
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def create_draft(client: GraphQLClient, **fields: Any) -> dict[str, str]:
    payload = await save_draft(client, **{"subject": "Plans", "text": "Dear Carol,", **fields})
    assert payload["errors"] == []
    return {"id": payload["message"]["id"]}


async def send_draft(client: GraphQLClient, draft: dict[str, str], **arguments: Any) -> Any:
    return await execute_mutation(client, "draftSend", FIELDS, message=draft, **arguments)


def error_codes_and_paths(answer: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in answer["errors"]]


def recipients_of(submission: Any) -> list[str]:
    return [delivery["recipient"] for delivery in submission["recipients"]]


async def read_message(client: GraphQLClient, draft: dict[str, str]) -> Any:
    return (await client(MESSAGE_QUERY, id=draft["id"]))["message"]


async def test_envelope_replaces_recipients_of_header(
    ada: GraphQLClient, environment: Environment
) -> None:
    draft = await create_draft(ada, **TO_CAROL)
    envelope = {"from": {"address": "ada@example.org"}, "to": [{"address": "dave@example.net"}]}
    answer = await send_draft(ada, draft, envelope=envelope)
    assert answer["errors"] == []
    (submission,) = answer["submissions"]
    assert recipients_of(submission) == ["dave@example.net"]
    assert [message["id"] for message in answer["messages"]] == [draft["id"]]
    (raw,) = await load_queued_messages(environment)
    assert b"To: carol@example.net" in raw


async def test_envelope_makes_draft_without_recipients_sendable(ada: GraphQLClient) -> None:
    draft = await create_draft(ada)
    assert error_codes_and_paths(await send_draft(ada, draft)) == [("VALIDATION", ["message"])]
    answer = await send_draft(ada, draft, envelope={"to": [{"address": "dave@example.net"}]})
    assert answer["errors"] == []


async def test_wrong_envelope_leaves_draft_unchanged(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    draft = await create_draft(ada, **TO_CAROL)
    foreign = {"from": {"address": bob.address}}
    assert error_codes_and_paths(await send_draft(ada, draft, envelope=foreign)) == [
        ("FORBIDDEN_OPERATION", ["envelope", "from"])
    ]
    assert (await read_message(ada, draft))["draft"] is True
    assert await load_queued_messages(environment) == []


async def test_dsn_is_requested_for_each_recipient(
    ada: GraphQLClient, environment: Environment
) -> None:
    answer = await send_draft(ada, await create_draft(ada, **TO_CAROL), requestDsn=True)
    assert answer["errors"] == []
    assert (await send_draft(ada, await create_draft(ada, **TO_CAROL)))["errors"] == []
    rows = await select_rows(environment, "SELECT notify FROM queue_entries ORDER BY id")
    requested, not_requested = (row[0] for row in rows)
    assert "SUCCESS" in str(requested).upper()
    assert "SUCCESS" not in str(not_requested or "").upper()


async def test_priority_of_draft_is_that_of_submission(
    ada: GraphQLClient, environment: Environment
) -> None:
    for priority in ("HIGH", "NORMAL", "LOW"):
        draft = await create_draft(ada, priority=priority, **TO_CAROL)
        assert (await send_draft(ada, draft))["errors"] == []
    rows = await select_rows(environment, "SELECT rank FROM queue_entries ORDER BY id")
    ranks = [row[0] for row in rows]
    assert ranks == sorted(set(ranks))


async def test_template_fills_subject_and_bodies(
    ada: GraphQLClient, environment: Environment
) -> None:
    draft = await create_draft(
        ada,
        **TO_CAROL,
        subject="Hello {{name}}",
        text="Dear {{name}},",
        html="<p>Dear {{name}},</p>",
        addAttachments=[ATTACHMENT],
    )
    before = await load_stream_position(environment, ada.user.id)
    answer = await send_draft(ada, draft, template={"name": "<Carol>"})
    assert answer["errors"] == []
    message = answer["messages"][0]
    assert (message["id"], message["draft"]) == (draft["id"], False)
    assert message["subject"] == "Hello <Carol>"
    assert message["text"].strip() == "Dear <Carol>,"
    assert "Dear &lt;Carol&gt;," in message["html"]
    assert (await read_message(ada, draft))["attachments"] == [{"filename": "ducks.csv"}]
    kinds = [kind for kind, _ in await load_journal_entries(environment, ada.user.id, before)]
    assert kinds[:2] == [EventType.MESSAGE_UPDATED, EventType.SUBMISSION_CREATED]


async def test_missing_value_leaves_draft_unchanged(
    ada: GraphQLClient, environment: Environment
) -> None:
    draft = await create_draft(ada, **TO_CAROL, text="Dear {{name}},")
    answer = await send_draft(ada, draft, template={"other": "x"})
    assert error_codes_and_paths(answer) == [("VALIDATION", ["message"])]
    answer = await send_draft(ada, draft, template={"name": []})
    assert error_codes_and_paths(answer)[0] == ("VALIDATION", ["template", "name"])
    assert (await read_message(ada, draft))["draft"] is True
    assert await load_queued_messages(environment) == []


async def test_undo_restores_placeholders(ada: GraphQLClient) -> None:
    draft = await create_draft(ada, **TO_CAROL, subject="Hello {{name}}", text="Dear {{name}},")
    for _ in range(2):
        answer = await send_draft(ada, draft, template={"name": "Carol"}, undoWindow="PT30S")
        assert answer["errors"] == []
        assert answer["messages"][0]["subject"] == "Hello Carol"
        undone = await execute_mutation(
            ada, "undo", "messages { id subject draft }", token=answer["undo"]["token"]
        )
        assert undone["errors"] == []
        assert undone["messages"] == [
            {"id": draft["id"], "subject": "Hello {{name}}", "draft": True}
        ]
        assert (await read_message(ada, draft))["text"].strip() == "Dear {{name}},"


async def test_mail_merge_sends_copies_and_keeps_draft(
    ada: GraphQLClient, environment: Environment
) -> None:
    draft = await create_draft(
        ada, subject="Hello {{name}}", text="At {{time}}.", addAttachments=[ATTACHMENT]
    )
    before = await read_message(ada, draft)
    answer = await send_draft(
        ada,
        draft,
        template={"time": "10:00"},
        mailMerge=[
            {"to": [{"address": f"{name}@example.net"}], "values": {"name": name.title()}}
            for name in ("carol", "dave")
        ],
    )
    assert answer["errors"] == []
    assert [recipients_of(submission) for submission in answer["submissions"]] == [
        ["carol@example.net"],
        ["dave@example.net"],
    ]
    assert [message["subject"] for message in answer["messages"]] == ["Hello Carol", "Hello Dave"]
    assert await read_message(ada, draft) == before
    queued = await load_queued_messages(environment)
    assert all(b"ducks.csv" in raw for raw in queued)
    ids = {raw.lower().split(b"message-id: ")[1].split(b"\r\n")[0] for raw in queued}
    assert len(ids) == 2


REFUSED_OPTIONS: list[tuple[Any, Any, list[str]]] = [
    (TO_CAROL, {"mailMerge": [TO_CAROL]}, ["mailMerge"]),
    ({}, {"mailMerge": []}, ["mailMerge"]),
    ({}, {"mailMerge": [TO_CAROL], "deleteFiles": True}, ["deleteFiles"]),
    ({}, {"mailMerge": [TO_CAROL], "envelope": TO_CAROL}, ["mailMerge"]),
    ({"text": "{{a}}"}, {"mailMerge": [TO_CAROL]}, ["mailMerge", "0", "values"]),
    ({}, {"mailMerge": [{"to": [{"address": "half@"}]}]}, ["mailMerge", "0", "to", "0"]),
    (TO_CAROL, {"encrypt": True}, ["encrypt"]),
    ({"bcc": TO_CAROL["to"]}, {"encrypt": True}, ["encrypt"]),
]


async def test_refused_options_send_nothing(ada: GraphQLClient, environment: Environment) -> None:
    for case in each_case(REFUSED_OPTIONS):
        with case as (fields, arguments, path):
            draft = await create_draft(ada, **fields)
            answer = await send_draft(ada, draft, **arguments)
            assert error_codes_and_paths(answer) == [("VALIDATION", path)]
            assert (await read_message(ada, draft))["draft"] is True
            assert await load_queued_messages(environment) == []


async def test_draft_is_encrypted_and_undo_restores_its_text(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    keys = {
        client.address: make_secret_key(f"{client.address} <{client.address}>")
        for client in (ada, bob)
    }
    for client in (ada, bob):
        key = armored_public_key(keys[client.address])
        assert (await try_update_users(client, openpgpPublicKey=key))[1] == []
    draft = await create_draft(ada, to=[{"address": bob.address}], text="A secret.")
    answer = await send_draft(ada, draft, encrypt=True, undoWindow="PT30S")
    assert answer["errors"] == []
    assert "A secret." not in (answer["messages"][0]["text"] or "")
    (raw,) = await load_queued_messages(environment)
    assert b"A secret." not in raw
    for secret_key in keys.values():
        assert b"A secret." in decrypt_message(raw, secret_key)
    undone = await execute_mutation(
        ada, "undo", "messages { id text draft }", token=answer["undo"]["token"]
    )
    assert undone["errors"] == []
    (restored,) = undone["messages"]
    assert (restored["id"], restored["draft"]) == (draft["id"], True)
    assert restored["text"].strip() == "A secret."


SEND_OPTIONS: list[Any] = [
    {"template": {"name": "x"}},
    {"mailMerge": [TO_CAROL]},
    {"envelope": TO_CAROL},
    {"requestDsn": True},
    {"encrypt": True},
]


async def test_other_user_sends_and_changes_nothing(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    draft = await create_draft(ada)
    before = await read_message(ada, draft)
    for case in each_case(SEND_OPTIONS):
        with case as arguments:
            answer = await send_draft(bob, draft, **arguments)
            assert error_codes_and_paths(answer) == [("NOT_FOUND", ["message"])]
            assert await read_message(ada, draft) == before
            assert await load_queued_messages(environment) == []


BOB = {"to": [{"address": "bob@example.org"}]}


REFUSED_ARGUMENTS: list[Any] = [
    {"undoWindow": "P2D"},
    {"sendAt": "2099-01-01T00:00:00Z"},
    {"template": {"a": {}}},
    {"template": {"a{": 1}},
    {"mailMerge": []},
    {"mailMerge": [TO_CAROL] * 101},
    {"mailMerge": [{}]},
    {"mailMerge": [{"to": [{"address": "half@"}]}, {"cc": [{"address": "a b@x.org"}]}]},
    {"mailMerge": [{**TO_CAROL, "values": {"x": [1]}}]},
    {"mailMerge": [TO_CAROL, {**TO_CAROL, "values": {"name": "a\r\nBcc: b@c.d"}}]},
    {"mailMerge": [BOB, {**BOB, "bcc": TO_CAROL["to"]}], "encrypt": True},
    {"mailMerge": [TO_CAROL], "encrypt": True, "template": {"name": "x"}},
    {"mailMerge": [TO_CAROL], "envelope": TO_CAROL},
    {"mailMerge": [TO_CAROL], "envelope": {"from": {"address": "a b@example.org"}}},
    {"envelope": {"from": {"address": "bob@example.org"}, **TO_CAROL}},
    {"envelope": {"from": {"address": "a b@example.org"}, **TO_CAROL}},
    {"envelope": {"to": [*TO_CAROL["to"], {"address": "half@"}]}},
    {"envelope": {"to": []}},
    {"envelope": {"to": [{"address": f"{n}@example.net"} for n in range(401)]}},
    {"envelope": TO_CAROL, "encrypt": True},
]


async def test_draft_send_refuses_what_message_send_refuses(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    assert bob.address == "bob@example.org"
    for case in each_case(REFUSED_ARGUMENTS):
        with case as arguments:
            is_sent_by_header = not {"mailMerge", "envelope"} & arguments.keys()
            subject = "Hello {{name}}" if "mailMerge" in arguments else "Hello"
            content = {"subject": subject, **(TO_CAROL if is_sent_by_header else {})}
            sent = await execute_mutation(
                ada, "messageSend", "undo { token }", **content, **arguments
            )
            draft = await create_draft(ada, **content)
            before = await read_message(ada, draft)
            answer = await send_draft(ada, draft, **arguments)
            assert error_codes_and_paths(answer) == error_codes_and_paths(sent) != []
            assert [error["message"] for error in answer["errors"]] == [
                error["message"] for error in sent["errors"]
            ]
            assert await read_message(ada, draft) == before
            assert await load_queued_messages(environment) == []


OPTIONS_OF_MALFORMED_DRAFT: list[Any] = [
    {},
    {"template": {}},
    {"mailMerge": [TO_CAROL]},
    {"template": {}, "envelope": TO_CAROL},
]


async def test_draft_with_malformed_address_is_never_sent(
    ada: GraphQLClient, environment: Environment
) -> None:
    raw = "From: ada@example.org\nTo: carol@example.net, half@\n\nHi.\n"
    draft = {"id": (await import_message(ada, raw=raw, draft=True))["message"]["id"]}
    for case in each_case(OPTIONS_OF_MALFORMED_DRAFT):
        with case as arguments:
            assert error_codes_and_paths(await send_draft(ada, draft, **arguments)) == [
                ("VALIDATION", ["message"])
            ]
            assert (await read_message(ada, draft))["draft"] is True
            assert await load_queued_messages(environment) == []


async def test_mail_merge_keeps_metadata_and_source_of_draft(ada: GraphQLClient) -> None:
    inserted = await deliver_to(ada, raw_message("Hello"))
    source = {"id": global_ids.encode("Message", inserted.message_id)}
    original = {"message": source, "relation": "FORWARD"}
    saved = await save_draft(ada, original=original, text="See below.", metadata={"case": 7})
    assert saved["errors"] == []
    answer = await execute_mutation(
        ada,
        "draftSend",
        "messages { metadata original { relation message { id } } }",
        message={"id": saved["message"]["id"]},
        mailMerge=[TO_CAROL],
    )
    assert answer["errors"] == []
    assert answer["messages"] == [
        {"metadata": {"case": 7}, "original": {"relation": "FORWARD", "message": source}}
    ]
    query = "query ($by: MessageRef!) { message(by: $by) { forwarded } }"
    assert (await ada(query, by=source))["message"] == {"forwarded": True}


async def test_undo_of_mail_merge_makes_copies_drafts(ada: GraphQLClient) -> None:
    draft = await create_draft(ada, text="Dear {{name}},")
    entries = [{**TO_CAROL, "values": {"name": name}} for name in ("Carol", "Dave")]
    answer = await send_draft(ada, draft, mailMerge=entries, undoWindow="PT30S")
    assert answer["errors"] == []
    undone = await execute_mutation(
        ada,
        "undo",
        "restoredCount messages { id draft text } submissions { state }",
        token=answer["undo"]["token"],
    )
    assert (undone["errors"], undone["restoredCount"]) == ([], 2)
    assert undone["submissions"] == [{"state": "CANCELLED"}] * 2
    assert [message["text"].strip() for message in undone["messages"]] == [
        "Dear Carol,", "Dear Dave,",
    ]  # fmt: skip
    assert all(message["draft"] for message in undone["messages"])
    assert draft["id"] not in {message["id"] for message in undone["messages"]}
    assert (await read_message(ada, draft))["text"].strip() == "Dear {{name}},"


async def test_undo_restores_large_attachments_of_filled_draft(
    ada: GraphQLClient, environment: Environment
) -> None:
    content = "QUJD" * 50_000
    attachments = [
        {"content": content, "filename": f"{name}.bin", "contentType": "application/octet-stream"}
        for name in "ab"
    ]
    draft = await create_draft(ada, **TO_CAROL, text="{{a}}", addAttachments=attachments)
    before = await read_message(ada, draft)
    answer = await send_draft(ada, draft, template={"a": "filled"}, undoWindow="PT30S")
    assert answer["errors"] == []
    (raw,) = await load_queued_messages(environment)
    assert raw.count(b"QUJDQUJD") > 1
    undone = await execute_mutation(ada, "undo", "messages { id }", token=answer["undo"]["token"])
    assert undone["errors"] == []
    assert await read_message(ada, draft) == before


async def test_cancelled_submission_of_filled_draft_becomes_draft(ada: GraphQLClient) -> None:
    draft = await create_draft(ada, **TO_CAROL, text="Dear {{name}},")
    answer = await send_draft(ada, draft, template={"name": "Carol"}, sendAt="2030-01-02T00:00:00Z")
    assert answer["errors"] == []
    cancelled = await execute_mutation(
        ada,
        "submissionCancel",
        "submissions { state }",
        submissions=[{"id": answer["submissions"][0]["id"]}],
    )
    assert (cancelled["errors"], cancelled["submissions"]) == ([], [{"state": "CANCELLED"}])
    message = await read_message(ada, draft)
    assert (message["draft"], message["text"].strip()) == (True, "Dear Carol,")


@pytest.mark.parametrize(
    "options", [{"template": {}}, {"requestDsn": True}, {"envelope": TO_CAROL}]
)
async def test_concurrent_sends_with_options_send_draft_once(
    ada: GraphQLClient, environment: Environment, options: Any
) -> None:
    draft = await create_draft(ada, **TO_CAROL)
    answers = await asyncio.gather(
        *(send_draft(ada, draft, undoWindow="PT30S", **options) for _ in range(4))
    )
    assert sorted(error_codes_and_paths(answer) for answer in answers) == [
        [],
        *[[("CONFLICT", ["message"])]] * 3,
    ]
    assert len(await load_queued_messages(environment)) == 1


async def test_draft_that_is_saved_during_sending_is_sent_or_stays_draft(
    ada: GraphQLClient, environment: Environment
) -> None:
    draft = await create_draft(ada, **TO_CAROL, text="{{a}} old")
    saved, sent = await asyncio.gather(
        save_draft(ada, draft=draft, text="{{a}} new"), send_draft(ada, draft, template={"a": "x"})
    )
    message, queued = await read_message(ada, draft), await load_queued_messages(environment)
    assert len(queued) == (0 if sent["errors"] else 1)
    if sent["errors"]:
        assert saved["errors"] == []
        assert error_codes_and_paths(sent)[0][0] in ("STALE", "CONFLICT")
        assert (message["draft"], message["text"].strip()) == (True, "{{a}} new")
    else:
        assert message["draft"] is False
        assert message["text"].strip() == ("x old" if saved["errors"] else "x new")
