"""Drafts that are submitted: what becomes of them, who may not, and how they come back."""

import asyncio
import base64
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update
from sqlmodel import col

from graph.types import global_ids
from models.events.journal import ChangeKind
from models.mailboxes.tables import Mailbox
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from models.users.tables import User
from tests.conftest import Client, Clock, make_key, raw_message, receive
from tests.support.accounts.user_operations import run
from tests.support.mail_servers.queue_worker import bodies, relay, settled, working
from tests.support.mail_servers.smtp_and_dns_servers import Server, listening
from tests.support.operations.bulk_operations import take_back
from tests.support.operations.message_sources import read_back, upload
from tests.support.stores.counter_check import journal, reached

SENT = """submission { id queueId state envelopeFrom sendTime undoUntil recipients { recipient } }
  message { id uid subject draft seen date bcc { address } mailbox { path }
    outbound { queueId entries { seq recipient state } } }
  undo { token } warnings { code path }"""
pytestmark = pytest.mark.usefixtures("examined")


async def draft(client: Client, **given: Any) -> Any:
    whole = {"subject": "Plans", "text": "Dear Carol,", "to": [{"address": "carol@example.net"}]}
    fields = {} if "raw" in given else whole
    answer = await upload(client, **{"draft": True, **fields, **given})
    assert answer["errors"] == []
    return answer["message"]


async def submit(client: Client, message: Any, **given: Any) -> Any:
    return await run(client, "messageSubmit", SENT, message={"id": message["id"]}, **given)


def codes(done: Any) -> list[tuple[str, list[str]]]:
    return [(error["code"], error["path"]) for error in done["errors"]]


async def test_a_draft_becomes_what_is_sent(ada: Client, world: Environment, clock: Clock) -> None:
    made = await draft(ada, bcc=[{"address": "dave@example.net"}])
    clock.tick(hours=2)
    before = await reached(world, ada.user.id)
    async with listening(Server()) as there, working(world, relay(there)):
        done = await submit(ada, made)
        assert (done["errors"], done["warnings"], done["undo"]) == ([], [], None)
        await settled(world, global_ids.decode("Submission", done["submission"]["id"]))
    message = done["message"]
    assert message["id"] == made["id"]
    assert (message["draft"], message["seen"], message["mailbox"]["path"]) == (False, True, "Sent")
    assert message["date"] == "2030-01-01T02:00:00Z"
    assert message["bcc"] == [{"address": "dave@example.net"}]
    (outbound,) = message["outbound"]
    assert outbound["queueId"] == done["submission"]["queueId"]
    assert [(e["seq"], e["recipient"]) for e in outbound["entries"]] == [
        ("001", "carol@example.net"),
        ("002", "dave@example.net"),
    ]
    (mail,) = there.mails
    assert b"Bcc" not in mail.raw
    assert sorted(mail.to) == ["carol@example.net", "dave@example.net"]
    kept = await read_back(ada, done)
    assert kept["Date"] == "Tue, 01 Jan 2030 02:00:00 +0000"
    assert kept["Bcc"] == "dave@example.net"
    told = [kind for kind, _ in await journal(world, ada.user.id, before)]
    assert told[:2] == [ChangeKind.MESSAGE_UPDATED, ChangeKind.SUBMISSION_CHANGED]


async def test_what_is_no_draft_is_not_sent(ada: Client, bob: Client, world: Environment) -> None:
    placed = await receive(ada, raw_message("Hello"))
    got = {"id": global_ids.encode("Message", placed.message_id)}
    assert codes(await submit(ada, got)) == [("CONFLICT", ["message"])]
    made = await draft(ada)
    assert codes(await submit(bob, made)) == [("NOT_FOUND", ["message"])]
    gone = {"id": global_ids.encode("Message", world.new_id())}
    assert codes(await submit(ada, gone)) == [("NOT_FOUND", ["message"])]
    assert (await submit(ada, made))["errors"] == []
    assert codes(await submit(ada, made)) == [("CONFLICT", ["message"])]
    assert len(await bodies(world)) == 1


async def test_of_two_at_once_one_goes(ada: Client, world: Environment) -> None:
    made = await draft(ada)
    done = await asyncio.gather(*(submit(ada, made) for _ in range(4)))
    assert sorted(codes(one) for one in done) == [[], *[[("CONFLICT", ["message"])]] * 3]
    assert len(await bodies(world)) == 1


@pytest.mark.parametrize("name", ["From", "Sender"])
async def test_a_draft_with_anothers_name_is_not_sent(
    ada: Client, bob: Client, world: Environment, name: str
) -> None:
    assert bob.user
    lines = {
        "From": "ada@example.org",
        "To": "c@example.net",
        "Subject": "x",
        name: "bob@example.org",
    }
    raw = "".join(f"{key}: {value}\n" for key, value in lines.items()) + "\nHi.\n"
    made = await draft(ada, raw=raw)
    assert codes(await submit(ada, made)) == [("FORBIDDEN_OPERATION", ["message"])]
    assert await bodies(world) == []


@pytest.mark.parametrize(
    "raw",
    [
        "From: ada@example.org\nSubject: nobody\n\nHi.\n",
        "Subject: no sender\nTo: c@example.net\n\nHi.\n",
        "From: ada@example.org\nFrom: ada@example.org\nTo: c@example.net\n\nHi.\n",
        "From: ada@example.org\nTo: half@\n\nHi.\n",
        "From: ada@example.org\nTo: c@exa mple.net\n\nHi.\n",
        "From: ada@example.org\nTo: c@-x.example\n\nHi.\n",
    ],
)
async def test_what_cannot_go_stays_a_draft(ada: Client, world: Environment, raw: str) -> None:
    made = await draft(ada, raw=raw)
    done = await submit(ada, made)
    assert [code for code, _ in codes(done)] == ["VALIDATION"]
    assert codes(done)[0][1][:1] == ["message"]
    assert await bodies(world) == []
    assert (await ada("query ($by: MessageRef!) { message(by: $by) { draft } }",
                      by={"id": made["id"]}))["message"] == {"draft": True}  # fmt: skip


async def test_undone_it_is_a_draft_again(ada: Client, world: Environment, clock: Clock) -> None:
    made = await draft(ada, mailbox={"specialUse": "DRAFTS"})
    done = await submit(ada, made, undoWindow="PT30S")
    assert done["submission"]["state"] == "HELD_FOR_UNDO"
    back = await take_back(ada, done)
    assert back["errors"] == []
    found = await ada(
        "query ($by: MessageRef!) { message(by: $by) { draft mailbox { path } text } }",
        by={"id": made["id"]},
    )
    assert found["message"]["draft"] is True
    assert found["message"]["mailbox"]["path"] == "Drafts"
    assert found["message"]["text"].strip() == "Dear Carol,"
    again = await submit(ada, made, undoWindow="PT30S")
    clock.tick(seconds=31)
    assert codes(await take_back(ada, again)) == [("NOT_FOUND", ["token"])]
    assert len(await bodies(world)) == 2


async def test_it_goes_later(ada: Client) -> None:
    done = await submit(ada, await draft(ada), sendTime="2030-01-02T00:00:00Z")
    assert done["submission"]["state"] == "SCHEDULED"
    assert done["message"]["date"] == "2030-01-02T00:00:00Z"


async def test_limits_hold_exactly(ada: Client, world: Environment) -> None:
    async with world.database.write_session() as session:
        this = update(User).where(col(User.id) == ada.user.id)
        await (await session.connection()).execute(this.values(recipients=2))
    many = await draft(ada, to=[{"address": f"{n}@example.net"} for n in range(3)])
    assert [code for code, _ in codes(await submit(ada, many))] == ["RATE_LIMITED"]
    few = await draft(ada, to=[{"address": f"{n}@example.net"} for n in range(2)])
    assert (await submit(ada, few))["errors"] == []
    assert [code for code, _ in codes(await submit(ada, many))] == ["RATE_LIMITED"]
    assert len(await bodies(world)) == 1


async def test_without_a_folder_sent_it_stays_where_it_is(ada: Client, world: Environment) -> None:
    made = await draft(ada)
    async with world.database.write_session() as session:
        these = update(Mailbox).where(col(Mailbox.user_id) == ada.user.id)
        these = these.where(col(Mailbox.path) == "Sent")
        await (await session.connection()).execute(these.values(special_use=None))
    done = await submit(ada, made)
    assert [one["code"] for one in done["warnings"]] == ["NOT_SAVED_TO_SENT"]
    assert (done["message"]["draft"], len(await bodies(world))) == (False, 1)


async def test_its_files_go_with_it(ada: Client, world: Environment) -> None:
    file = (await run(ada, "fileUpload", "file { id }", content={"text": "1;2"}, filename="a.csv"))[
        "file"
    ]
    made = await draft(ada, files=[file["id"]])
    shown = await ada(
        "query ($by: MessageRef!) { message(by: $by) { files { id } attachments { filename } } }",
        by={"id": made["id"]},
    )
    assert shown["message"] == {"files": [file], "attachments": [{"filename": "a.csv"}]}
    done = await submit(ada, made, deleteFiles=True)
    assert done["errors"] == []
    left = await ada("{ viewer { user { files { totalCount } } } }")
    assert left["viewer"]["user"]["files"]["totalCount"] == 0
    (raw,) = await bodies(world)
    assert base64.b64encode(b"1;2") in raw


async def test_the_message_it_answers_is_marked(ada: Client) -> None:
    placed = await receive(ada, raw_message("Hello"))
    key = global_ids.encode("Message", placed.message_id)
    reference = {"message": {"id": key}, "action": "REPLY"}
    made = await draft(ada, reference=reference)
    assert (await submit(ada, made))["errors"] == []
    found = await ada("query ($by: MessageRef!) { message(by: $by) { answered } }", by={"id": key})
    assert found["message"]["answered"] is True


async def test_administrators_send_for_users_and_it_is_written_down(
    ada: Client, bob: Client, world: Environment
) -> None:
    secret = await make_key(world, "backend", role=Role.ROOT, scopes=[Scope.MASTER])
    root = replace(ada, secret=secret)
    made = await draft(ada)
    assert codes(await submit(bob, made)) == [("NOT_FOUND", ["message"])]
    done = await submit(root, made)
    assert done["errors"] == []
    assert done["submission"]["envelopeFrom"] == "ada@example.org"
    log = await root("{ adminLog(first: 5) { nodes { mutation target { id } } } }")
    assert log["adminLog"]["nodes"][0]["mutation"] == "messageSubmit"
