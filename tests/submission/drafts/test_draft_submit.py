"""Test draftSend: sending a draft, its limits, and undo."""

import asyncio
import base64
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from graph.types import global_ids
from models.events.event_types import EventType
from models.mailboxes.tables import Mailbox
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from models.users.tables import User
from tests.conftest import GraphQLClient, ManualClock, deliver_to, make_api_key, raw_message
from tests.support.accounts.user_operations import execute_mutation
from tests.support.case_loop import each_case
from tests.support.mail_servers.queue_worker import (
    load_queued_messages,
    relay_settings,
    run_queue_worker,
    wait_until_tried,
)
from tests.support.mail_servers.smtp_and_dns_servers import FakeSmtpServer, run_smtp_server
from tests.support.operations.bulk_operations import undo_mutation
from tests.support.operations.message_sources import (
    import_message,
    parse_stored_message,
    save_draft,
)
from tests.support.stores.counter_check import load_journal_entries, load_stream_position

FIELDS = """submissions {
    id queueId state envelopeFrom sendAt undoableUntil recipients { recipient } }
  messages { id imap { uid } subject draft seen date bcc { address } mailbox { path }
    submissions { queueId recipients { recipient state } } }
  undo { token } warnings { code path }"""
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def create_draft(client: GraphQLClient, **overrides: Any) -> Any:
    default_fields = {
        "subject": "Plans",
        "text": "Dear Carol,",
        "to": [{"address": "carol@example.net"}],
    }
    if "raw" in overrides:
        answer = await import_message(client, draft=True, **overrides)
    else:
        answer = await save_draft(client, **{**default_fields, **overrides})
    assert answer["errors"] == []
    return answer["message"]


async def submit_draft(client: GraphQLClient, message: Any, **arguments: Any) -> Any:
    return await execute_mutation(
        client, "draftSend", FIELDS, message={"id": message["id"]}, **arguments
    )


def error_codes_and_paths(answer: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in answer["errors"]]


async def test_submitted_draft_is_sent_and_moved_to_sent(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    new_draft = await create_draft(ada, bcc=[{"address": "dave@example.net"}])
    clock.tick(hours=2)
    before = await load_stream_position(environment, ada.user.id)
    async with (
        run_smtp_server(FakeSmtpServer()) as server,
        run_queue_worker(environment, relay_settings(server)),
    ):
        answer = await submit_draft(ada, new_draft)
        assert (answer["errors"], answer["warnings"], answer["undo"]) == ([], [], None)
        await wait_until_tried(
            environment, global_ids.decode("Submission", answer["submissions"][0]["id"])
        )
    message = answer["messages"][0]
    assert message["id"] == new_draft["id"]
    assert (message["draft"], message["seen"], message["mailbox"]["path"]) == (False, True, "Sent")
    assert message["date"] == "2030-01-01T02:00:00Z"
    assert message["bcc"] == [{"address": "dave@example.net"}]
    (submission,) = message["submissions"]
    assert submission["queueId"] == answer["submissions"][0]["queueId"]
    assert [delivery["recipient"] for delivery in submission["recipients"]] == [
        "carol@example.net",
        "dave@example.net",
    ]
    (received,) = server.messages
    assert b"Bcc" not in received.raw
    assert sorted(received.to) == ["carol@example.net", "dave@example.net"]
    sent_copy = await parse_stored_message(ada, {**answer, "message": message})
    assert sent_copy["Date"] == "Tue, 01 Jan 2030 02:00:00 +0000"
    assert sent_copy["Bcc"] == "dave@example.net"
    kinds = [kind for kind, _ in await load_journal_entries(environment, ada.user.id, before)]
    assert kinds[:2] == [EventType.MESSAGE_UPDATED, EventType.SUBMISSION_CREATED]


async def test_submit_of_non_draft_is_refused(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    inserted = await deliver_to(ada, raw_message("Hello"))
    received_message = {"id": global_ids.encode("Message", inserted.message_id)}
    assert error_codes_and_paths(await submit_draft(ada, received_message)) == [
        ("CONFLICT", ["message"])
    ]
    new_draft = await create_draft(ada)
    assert error_codes_and_paths(await submit_draft(bob, new_draft)) == [("NOT_FOUND", ["message"])]
    unknown_message = {"id": global_ids.encode("Message", environment.new_id())}
    assert error_codes_and_paths(await submit_draft(ada, unknown_message)) == [
        ("NOT_FOUND", ["message"])
    ]
    assert (await submit_draft(ada, new_draft))["errors"] == []
    assert error_codes_and_paths(await submit_draft(ada, new_draft)) == [("CONFLICT", ["message"])]
    assert len(await load_queued_messages(environment)) == 1


async def test_concurrent_submits_send_draft_once(
    ada: GraphQLClient, environment: Environment
) -> None:
    new_draft = await create_draft(ada)
    answers = await asyncio.gather(*(submit_draft(ada, new_draft) for _ in range(4)))
    assert sorted(error_codes_and_paths(answer) for answer in answers) == [
        [],
        *[[("CONFLICT", ["message"])]] * 3,
    ]
    assert len(await load_queued_messages(environment)) == 1


@pytest.mark.parametrize("name", ["From", "Sender"])
async def test_draft_with_foreign_sender_is_refused(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, name: str
) -> None:
    assert bob.user
    header_fields = {
        "From": "ada@example.org",
        "To": "c@example.net",
        "Subject": "x",
        name: "bob@example.org",
    }
    raw = "".join(f"{key}: {value}\n" for key, value in header_fields.items()) + "\nHi.\n"
    new_draft = await create_draft(ada, raw=raw)
    assert error_codes_and_paths(await submit_draft(ada, new_draft)) == [
        ("FORBIDDEN_OPERATION", ["message"])
    ]
    assert await load_queued_messages(environment) == []


UNSENDABLE_DRAFTS: list[str] = [
    "From: ada@example.org\nSubject: nobody\n\nHi.\n",
    "Subject: no sender\nTo: c@example.net\n\nHi.\n",
    "From: ada@example.org\nFrom: ada@example.org\nTo: c@example.net\n\nHi.\n",
    "From: ada@example.org\nTo: half@\n\nHi.\n",
    "From: ada@example.org\nTo: c@exa mple.net\n\nHi.\n",
    "From: ada@example.org\nTo: c@-x.example\n\nHi.\n",
]


async def test_unsendable_draft_stays_a_draft(ada: GraphQLClient, environment: Environment) -> None:
    for case in each_case(UNSENDABLE_DRAFTS):
        with case as raw:
            new_draft = await create_draft(ada, raw=raw)
            answer = await submit_draft(ada, new_draft)
            assert [code for code, _ in error_codes_and_paths(answer)] == ["VALIDATION"]
            assert error_codes_and_paths(answer)[0][1][:1] == ["message"]
            assert await load_queued_messages(environment) == []
            answer = await ada(
                "query ($by: MessageRef!) { message(by: $by) { draft } }",
                by={"id": new_draft["id"]},
            )
            assert answer["message"] == {"draft": True}


async def test_undo_of_submit_restores_draft(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    new_draft = await create_draft(ada, mailbox={"specialUse": "DRAFTS"})
    answer = await submit_draft(ada, new_draft, undoWindow="PT30S")
    assert answer["submissions"][0]["state"] == "UNDOABLE"
    undone = await execute_mutation(
        ada,
        "undo",
        "restoredCount messages { id draft mailbox { path } } submissions { id state }",
        token=answer["undo"]["token"],
    )
    assert undone["errors"] == []
    assert undone["restoredCount"] == 1
    draft = {"id": new_draft["id"], "draft": True, "mailbox": {"path": "Drafts"}}
    assert undone["messages"] == [draft]
    assert undone["submissions"] == [{"id": answer["submissions"][0]["id"], "state": "CANCELLED"}]
    result = await ada(
        "query ($by: MessageRef!) { message(by: $by) { draft mailbox { path } text } }",
        by={"id": new_draft["id"]},
    )
    assert result["message"]["draft"] is True
    assert result["message"]["mailbox"]["path"] == "Drafts"
    assert result["message"]["text"].strip() == "Dear Carol,"
    repeated = await submit_draft(ada, new_draft, undoWindow="PT30S")
    clock.tick(seconds=31)
    assert error_codes_and_paths(await undo_mutation(ada, repeated)) == [("NOT_FOUND", ["token"])]
    assert len(await load_queued_messages(environment)) == 2


async def test_draft_is_submitted_for_later(ada: GraphQLClient) -> None:
    answer = await submit_draft(ada, await create_draft(ada), sendAt="2030-01-02T00:00:00Z")
    assert answer["submissions"][0]["state"] == "SCHEDULED"
    assert answer["messages"][0]["date"] == "2030-01-02T00:00:00Z"


async def test_recipient_limit_applies_to_submitted_drafts(
    ada: GraphQLClient, environment: Environment
) -> None:
    async with environment.database.write_session() as session:
        user_update = update(User).where(col(User.id) == ada.user.id)
        await (await session.connection()).execute(user_update.values(recipients_per_day=2))
    over_limit = await create_draft(ada, to=[{"address": f"{n}@example.net"} for n in range(3)])
    assert [code for code, _ in error_codes_and_paths(await submit_draft(ada, over_limit))] == [
        "RATE_LIMITED"
    ]
    within_limit = await create_draft(ada, to=[{"address": f"{n}@example.net"} for n in range(2)])
    assert (await submit_draft(ada, within_limit))["errors"] == []
    assert [code for code, _ in error_codes_and_paths(await submit_draft(ada, over_limit))] == [
        "RATE_LIMITED"
    ]
    assert len(await load_queued_messages(environment)) == 1


async def test_submitted_draft_stays_in_its_mailbox_without_sent(
    ada: GraphQLClient, environment: Environment
) -> None:
    new_draft = await create_draft(ada)
    async with environment.database.write_session() as session:
        mailbox_update = update(Mailbox).where(col(Mailbox.user_id) == ada.user.id)
        mailbox_update = mailbox_update.where(col(Mailbox.path) == "Sent")
        await (await session.connection()).execute(mailbox_update.values(special_use=None))
    answer = await submit_draft(ada, new_draft)
    assert [warning["code"] for warning in answer["warnings"]] == ["NOT_SAVED_TO_SENT"]
    assert answer["messages"][0]["draft"] is False
    assert len(await load_queued_messages(environment)) == 1


async def test_stored_files_of_draft_are_attached_and_deleted(
    ada: GraphQLClient, environment: Environment
) -> None:
    file = (
        await execute_mutation(
            ada, "fileUpload", "file { id }", content={"text": "1;2"}, filename="a.csv"
        )
    )["file"]
    new_draft = await create_draft(ada, addFiles=[file])
    draft_files = await ada(
        "query ($by: MessageRef!) { message(by: $by) { storedFiles { id } "
        "attachments { filename } } }",
        by={"id": new_draft["id"]},
    )
    assert draft_files["message"] == {"storedFiles": [file], "attachments": [{"filename": "a.csv"}]}
    kept = await execute_mutation(
        ada, "fileUpload", "file { id }", content={"text": "3;4"}, filename="b.csv"
    )
    reference = {"id": new_draft["id"]}
    saved = await save_draft(ada, draft=reference, addFiles=[kept["file"]])
    attachments = saved["message"]["attachments"]
    assert [item["filename"] for item in attachments] == ["a.csv", "b.csv"]
    removed = [{"id": attachments[1]["id"]}]
    assert (await save_draft(ada, draft=reference, removeAttachments=removed))["errors"] == []
    assert (await save_draft(ada, draft=reference, text="More."))["errors"] == []
    answer = await submit_draft(ada, new_draft, deleteFiles=True)
    assert answer["errors"] == []
    remaining = await ada("{ viewer { user { files { totalCount } } } }")
    assert remaining["viewer"]["user"]["files"]["totalCount"] == 1
    (raw,) = await load_queued_messages(environment)
    assert base64.b64encode(b"1;2") in raw


async def test_submit_marks_original_as_answered(ada: GraphQLClient) -> None:
    inserted = await deliver_to(ada, raw_message("Hello"))
    message_id = global_ids.encode("Message", inserted.message_id)
    reference = {"message": {"id": message_id}, "relation": "REPLY"}
    new_draft = await create_draft(ada, original=reference)
    assert (await submit_draft(ada, new_draft))["errors"] == []
    result = await ada(
        "query ($by: MessageRef!) { message(by: $by) { answered } }", by={"id": message_id}
    )
    assert result["message"]["answered"] is True


async def test_submit_by_admin_is_logged(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    secret = await make_api_key(environment, "backend", role=Role.ROOT, scopes=[Scope.FULL])
    root = replace(ada, secret=secret)
    new_draft = await create_draft(ada)
    assert error_codes_and_paths(await submit_draft(bob, new_draft)) == [("NOT_FOUND", ["message"])]
    answer = await submit_draft(root, new_draft)
    assert answer["errors"] == []
    assert answer["submissions"][0]["envelopeFrom"] == "ada@example.org"
    log = await root("{ auditLog(first: 5) { nodes { mutation target { id } } } }")
    assert log["auditLog"]["nodes"][0]["mutation"] == "draftSend"
