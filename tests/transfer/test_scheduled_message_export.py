"""Messages that wait to be sent, in accounts as files: drafts, so that nothing goes twice."""

import base64
import io
import json
import zipfile
from email import message_from_bytes
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlmodel import col

from models.files.blobs import Blob
from models.runtime.environment import Environment
from models.submission.tables import Submission
from models.users.tables import User
from tests.conftest import Client, receive
from tests.support.accounts.account_exports import FULL, ended, exported, imported, told
from tests.support.accounts.user_operations import run
from tests.support.mail_servers.queue_worker import bodies

LATER = {"to": [{"address": "carol@example.net"}], "subject": "Later", "text": "Hi."}
FOUND = """{ viewer { user { messages { nodes { subject draft mailbox { path }
  envelope { from } } } } } }"""
pytestmark = pytest.mark.usefixtures("examined")


async def nodes(client: Client) -> list[Any]:
    found = (await client(FOUND))["viewer"]["user"]["messages"]["nodes"]
    return sorted(found, key=lambda node: str(node["subject"]))


@pytest.mark.parametrize("kind", FULL)
async def test_what_is_to_go_later_comes_back_as_a_draft(
    ada: Client, bob: Client, world: Environment, kind: str
) -> None:
    await run(ada, "messageSend", "submission { id }", **LATER, sendTime="2030-02-01T00:00:00Z")
    await run(ada, "messageSend", "submission { id }", **{**LATER, "subject": "Now"})
    made = await exported(ada, format=kind)
    sent = len(await bodies(world))
    await imported(bob, made["content"])
    later, now = await nodes(bob)
    assert later == {"subject": "Later", "draft": True, "mailbox": {"path": "Drafts"},
                     "envelope": None}  # fmt: skip
    assert (now["subject"], now["draft"], now["mailbox"]["path"]) == ("Now", False, "Sent")
    assert len(await bodies(world)) == sent  # nobody sends it a second time


async def test_the_record_says_to_whom_and_when(ada: Client) -> None:
    await run(ada, "messageSend", "submission { id }", **LATER, sendTime="2030-02-01T00:00:00Z")
    made = await exported(ada, format="EML_ZIP")
    with zipfile.ZipFile(io.BytesIO(made["content"])) as archive:
        name = next(n for n in archive.namelist() if n.endswith("account.json"))
        account = json.loads(archive.read(name))
    (one,) = account["scheduled"]
    assert (one["subject"], one["recipients"]) == ("Later", ["carol@example.net"])
    assert one["sendTime"].startswith("2030-02-01T00:00:00")


async def quota(client: Client, size: int | None) -> None:
    async with client.world.write_session(client.user.id) as session:
        row = update(User).where(col(User.id) == client.user.id)
        await session.exec(row.values(quota=size))


async def scheduled(client: Client, subject: str, **more: Any) -> dict[str, Any]:
    """Something that is to go in February, without a copy: there is no room for one."""
    await quota(client, 10)
    given = {**LATER, "subject": subject, "sendTime": "2030-02-01T00:00:00Z"} | more
    done = await run(client, "messageSend", "submission { id } message { id }", **given)
    await quota(client, None)
    assert done["message"] is None
    submission: dict[str, Any] = done["submission"]
    return submission


async def gone(client: Client, subject: str) -> None:
    """The copy is deleted, into the archive; it goes out all the same."""
    given = {**LATER, "subject": subject, "sendTime": "2030-02-01T00:00:00Z"}
    done = await run(client, "messageSend", "message { id }", **given)
    await run(client, "messageDelete", "deletedCount", select={"ids": [done["message"]["id"]]})


@pytest.mark.usefixtures("chunked")
@pytest.mark.parametrize("kind", FULL)
async def test_what_has_no_copy_comes_back_as_a_draft_too(
    ada: Client, bob: Client, world: Environment, kind: str
) -> None:
    await receive(ada, "a")
    many = [f"Later {nth}" for nth in range(4)]
    for subject in many:
        await scheduled(ada, subject, bcc=[{"address": "dave@example.net"}])
    await gone(ada, "Later 4")
    await scheduled(bob, "bob's")
    whole = (await bodies(world))[:5]
    made = await exported(ada, format=kind)
    assert (made["task"]["done"], made["task"]["total"]) == (6, 6)
    task = await imported(bob, made["content"])
    assert (task["result"]["stored"], task["result"]["refused"]) == (6, [])
    first, *later = sorted(await nodes(bob), key=lambda node: node["draft"])
    assert first["subject"] == "a"
    drafts = {"draft": True, "mailbox": {"path": "Drafts"}, "envelope": None}
    assert sorted(later, key=lambda node: str(node["subject"])) == [
        {"subject": subject, **drafts} for subject in (*many, "Later 4")
    ]
    assert b"dave@example.net" in whole[0]
    assert sorted(await sources(bob)) == sorted(whole)
    assert len(await bodies(world)) == 6  # nobody sends it a second time


async def sources(client: Client) -> list[bytes]:
    """The drafts of an account, byte for byte."""
    mail = (await told(client))["mail"]
    return [raw for path, raw, flags, _ in mail if path == "Drafts" and "\\Draft" in flags]


async def test_what_is_sent_or_not_asked_for_is_no_draft(ada: Client) -> None:
    await receive(ada, "a")
    submission = await scheduled(ada, "Later")
    chosen = await exported(ada, format="JSON", filter={"mailbox": {"path": "INBOX"}})
    assert subjects(chosen["content"]) == ["a"]
    assert subjects((await exported(ada, format="JSON"))["content"]) == ["a", "Later"]
    mbox = (await exported(ada, format="MBOX"))["content"]
    assert (mbox.count(b"Subject: Later"), mbox.count(b"Subject: a\r\n")) == (1, 1)
    await run(ada, "submissionCancel", "submissions { state }", ids=[submission["id"]])
    await quota(ada, 10)
    await run(ada, "messageSend", "submission { id }", **LATER)  # goes at once
    await quota(ada, None)
    assert subjects((await exported(ada, format="JSON"))["content"]) == ["a"]


def subjects(content: bytes) -> list[str]:
    """Of the messages of an archive, in their order."""
    records = [json.loads(line) for line in content.splitlines()]
    raws = [base64.b64decode(each["source"]) for each in records if each["kind"] == "message"]
    return [str(message_from_bytes(raw)["Subject"]) for raw in raws]


async def test_what_lies_damaged_in_the_queue_is_told(ada: Client, world: Environment) -> None:
    for subject in ("Later", "Whole"):
        await scheduled(ada, subject)
    asked = select(col(Submission.blob_id), col(Blob.data), col(Submission.queue_id)).join_from(
        Submission, Blob, col(Blob.id) == col(Submission.blob_id)
    )
    row = (await world.database.read(asked.order_by(col(Submission.id))))[0]
    await lies(world, row.blob_id, b"junk")
    made = await exported(ada, format="JSON")
    await lies(world, row.blob_id, row.data)
    assert subjects(made["content"]) == ["Whole"]
    task = await ended(ada, made["task"]["id"])
    assert [one[0] for one in task["result"]["refused"]] == [f"submission {row.queue_id}"]


async def lies(world: Environment, blob_id: int, data: bytes) -> None:
    async with world.write_session() as session:
        await session.exec(update(Blob).where(col(Blob.id) == blob_id).values(data=data))
