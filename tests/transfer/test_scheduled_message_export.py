"""Scheduled messages in account exports become drafts, so that no message is sent twice."""

import base64
import io
import json
import zipfile
from email import message_from_bytes
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from graph.types import global_ids
from models.files.blobs import Blob
from models.runtime.environment import Environment
from models.submission.tables import Submission
from models.users.tables import User
from tests.conftest import GraphQLClient, deliver_to
from tests.support.accounts.user_exports import (
    FULL_EXPORT_FORMATS,
    export_account,
    import_account,
    load_account_state,
    load_task,
)
from tests.support.accounts.user_operations import execute_mutation
from tests.support.mail_servers.queue_worker import load_queued_messages

SCHEDULED_MESSAGE = {"to": [{"address": "carol@example.net"}], "subject": "Later", "text": "Hi."}
MESSAGES_QUERY = """{ viewer { user { messages { nodes { subject draft mailbox { path }
  envelope { from } } } } } }"""
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def list_messages(client: GraphQLClient) -> list[Any]:
    messages = (await client(MESSAGES_QUERY))["viewer"]["user"]["messages"]["nodes"]
    return sorted(messages, key=lambda node: str(node["subject"]))


@pytest.mark.parametrize("archive_format", FULL_EXPORT_FORMATS)
async def test_scheduled_message_is_imported_as_a_draft(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, archive_format: str
) -> None:
    await execute_mutation(
        ada,
        "messageSend",
        "submissions { id }",
        **SCHEDULED_MESSAGE,
        sendAt="2030-02-01T00:00:00Z",
    )
    await execute_mutation(
        ada, "messageSend", "submissions { id }", **{**SCHEDULED_MESSAGE, "subject": "Now"}
    )
    export = await export_account(ada, format=archive_format)
    submission_count = len(await load_queued_messages(environment))
    await import_account(bob, export["content"])
    scheduled_message, sent_message = await list_messages(bob)
    assert scheduled_message == {"subject": "Later", "draft": True, "mailbox": {"path": "Drafts"},
                     "envelope": None}  # fmt: skip
    assert (sent_message["subject"], sent_message["draft"], sent_message["mailbox"]["path"]) == (
        "Now",
        False,
        "Sent",
    )
    # no message is queued again
    assert len(await load_queued_messages(environment)) == submission_count


async def test_export_record_has_recipients_and_send_at(ada: GraphQLClient) -> None:
    await execute_mutation(
        ada,
        "messageSend",
        "submissions { id }",
        **SCHEDULED_MESSAGE,
        sendAt="2030-02-01T00:00:00Z",
    )
    export = await export_account(ada, format="EML_ZIP")
    with zipfile.ZipFile(io.BytesIO(export["content"])) as archive:
        name = next(n for n in archive.namelist() if n.endswith("account.json"))
        account = json.loads(archive.read(name))
    (submission,) = account["scheduled"]
    assert (submission["subject"], submission["recipients"]) == ("Later", ["carol@example.net"])
    assert submission["sendAt"].startswith("2030-02-01T00:00:00")


async def set_quota(client: GraphQLClient, size: int | None) -> None:
    async with client.environment.write_session(client.user.id) as session:
        row = update(User).where(col(User.id) == client.user.id)
        await session.exec(row.values(quota=size))


async def schedule_without_copy(
    client: GraphQLClient, subject: str, **changes: Any
) -> dict[str, Any]:
    """Schedule a message without a copy, since the account is full."""
    await set_quota(client, 10)
    message_input = {
        **SCHEDULED_MESSAGE,
        "subject": subject,
        "sendAt": "2030-02-01T00:00:00Z",
    } | changes
    payload = await execute_mutation(
        client, "messageSend", "submissions { id } messages { id }", **message_input
    )
    await set_quota(client, None)
    assert payload["messages"] == []
    submission: dict[str, Any] = payload["submissions"][0]
    return submission


async def schedule_with_deleted_copy(client: GraphQLClient, subject: str) -> None:
    """Schedule a message and delete its copy. The message is still sent."""
    message_input = {**SCHEDULED_MESSAGE, "subject": subject, "sendAt": "2030-02-01T00:00:00Z"}
    payload = await execute_mutation(client, "messageSend", "messages { id }", **message_input)
    await execute_mutation(
        client, "messageDelete", "deletedCount", select={"ids": [payload["messages"][0]["id"]]}
    )


@pytest.mark.usefixtures("small_transfer_chunks")
@pytest.mark.parametrize("archive_format", FULL_EXPORT_FORMATS)
async def test_scheduled_message_without_copy_is_imported_as_a_draft(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment, archive_format: str
) -> None:
    await deliver_to(ada, "a")
    scheduled_subjects = [f"Later {number}" for number in range(4)]
    for subject in scheduled_subjects:
        await schedule_without_copy(ada, subject, bcc=[{"address": "dave@example.net"}])
    await schedule_with_deleted_copy(ada, "Later 4")
    await schedule_without_copy(bob, "bob's")
    adas_bodies = (await load_queued_messages(environment))[:5]
    export = await export_account(ada, format=archive_format)
    assert (export["task"]["doneCount"], export["task"]["totalCount"]) == (6, 6)
    task = await import_account(bob, export["content"])
    assert (task["result"]["storedCount"], task["result"]["refused"]) == (6, [])
    received_message, *draft_messages = sorted(
        await list_messages(bob), key=lambda node: node["draft"]
    )
    assert received_message["subject"] == "a"
    drafts = {"draft": True, "mailbox": {"path": "Drafts"}, "envelope": None}
    assert sorted(draft_messages, key=lambda node: str(node["subject"])) == [
        {"subject": subject, **drafts} for subject in (*scheduled_subjects, "Later 4")
    ]
    assert b"dave@example.net" in adas_bodies[0]
    assert sorted(await load_draft_sources(bob)) == sorted(adas_bodies)
    assert len(await load_queued_messages(environment)) == 6  # no message is queued again


async def load_draft_sources(client: GraphQLClient) -> list[bytes]:
    """Return the raw drafts of an account."""
    messages = (await load_account_state(client))["mail"]
    return [raw for path, raw, flags, _ in messages if path == "Drafts" and "\\Draft" in flags]


async def test_sent_or_unselected_message_is_not_exported_as_a_draft(ada: GraphQLClient) -> None:
    await deliver_to(ada, "a")
    submission = await schedule_without_copy(ada, "Later")
    selected_export = await export_account(
        ada, format="JSON", filter={"mailbox": {"path": "INBOX"}}
    )
    assert archive_subjects(selected_export["content"]) == ["a"]
    assert archive_subjects((await export_account(ada, format="JSON"))["content"]) == ["a", "Later"]
    mbox = (await export_account(ada, format="MBOX"))["content"]
    assert (mbox.count(b"Subject: Later"), mbox.count(b"Subject: a\r\n")) == (1, 1)
    await execute_mutation(
        ada, "submissionCancel", "submissions { state }", submissions=[{"id": submission["id"]}]
    )
    await set_quota(ada, 10)
    # sent at once
    await execute_mutation(ada, "messageSend", "submissions { id }", **SCHEDULED_MESSAGE)
    await set_quota(ada, None)
    assert archive_subjects((await export_account(ada, format="JSON"))["content"]) == ["a"]


def archive_subjects(content: bytes) -> list[str]:
    """Return the subjects of the messages of an archive in order."""
    records = [json.loads(line) for line in content.splitlines()]
    raws = [base64.b64decode(record["source"]) for record in records if record["kind"] == "message"]
    return [str(message_from_bytes(raw)["Subject"]) for raw in raws]


async def test_damaged_queued_message_is_reported(
    ada: GraphQLClient, environment: Environment
) -> None:
    for subject in ("Later", "Whole"):
        await schedule_without_copy(ada, subject)
    statement = select(col(Submission.blob_id), col(Blob.data), col(Submission.queue_id)).join_from(
        Submission, Blob, col(Blob.id) == col(Submission.blob_id)
    )
    row = (await environment.database.read(statement.order_by(col(Submission.id))))[0]
    await replace_blob_data(environment, row.blob_id, b"junk")
    export = await export_account(ada, format="JSON")
    await replace_blob_data(environment, row.blob_id, row.data)
    assert archive_subjects(export["content"]) == ["Whole"]
    task = await load_task(ada, export["task"]["id"])
    assert [refusal[0] for refusal in task["result"]["refused"]] == [f"submission {row.queue_id}"]


async def replace_blob_data(environment: Environment, blob_id: int, data: bytes) -> None:
    async with environment.write_session() as session:
        await session.exec(update(Blob).where(col(Blob.id) == blob_id).values(data=data))


async def test_message_with_scheduled_redirect_is_exported_unchanged(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    inserted = await deliver_to(ada, "Offer")
    message = {"id": global_ids.encode("Message", inserted.message_id)}
    redirected = await execute_mutation(
        ada, "messageRedirect", "submission { id }", message=message, to=["carol@example.net"]
    )
    await execute_mutation(
        ada,
        "submissionReschedule",
        "submissions { id }",
        submissions=[redirected["submission"]],
        sendAt="2030-02-01T00:00:00Z",
    )
    await import_account(bob, (await export_account(ada, format="JSON"))["content"])
    (imported,) = await list_messages(bob)
    assert (imported["draft"], imported["mailbox"]) == (False, {"path": "INBOX"})
