"""Audits: what is copied, by which road, for how long, and who sees any of it."""

import contextlib
import json
import mailbox
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from graph.types import global_ids
from mail.consistency import check_consistency
from mail.maintenance import housekeeping
from mail.storage.blobs.garbage_collector import collect_garbage
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from resolvers.admin import tasks
from tests.conftest import Client, Clock, make_client, raw_message, receive
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import ERRORS, id_of, run
from tests.support.operations.audit_operations import (
    AUDIT_EXPIRES,
    AUDIT_FIELDS,
    AUDIT_PAYLOAD,
    start_audit,
)
from tests.support.operations.bulk_operations import call, inbox
from tests.support.operations.message_sources import upload
from tests.support.stores.counter_check import journal, reached, rows

COPY = """position road mailboxPath subject from { address } to { address } size digest hash intro
  envelopeFrom envelopeTo receivedAt copiedAt hasAttachments"""
ONE = f"""query ($id: ID!, $first: Int, $after: String) {{ audit(id: $id) {{ {AUDIT_FIELDS}
  messages(first: $first, after: $after) {{
    nodes {{ id {COPY} }} totalCount pageInfo {{ hasNextPage endCursor }} }} }} }}"""
pytestmark = pytest.mark.usefixtures("examined")


async def one(client: Client, key: str, **ask: Any) -> Any:
    found = (await client(ONE, id=key, **ask))["audit"]
    assert found is None or found["brokenPosition"] is None
    return found


async def copied(client: Client, key: str) -> dict[str, str]:
    """The road of each copy, by subject."""
    nodes = (await one(client, key, first=250))["messages"]["nodes"]
    assert [node["position"] for node in nodes] == list(range(1, len(nodes) + 1))
    return {node["subject"]: node["road"] for node in nodes}


async def remove(client: Client, *keys: str) -> Any:
    document = f"""mutation ($ids: [ID!]!) {{
      auditDelete(input: {{ids: $ids}}) {{ deletedIds {ERRORS} }} }}"""
    return (await client(document, ids=keys))["auditDelete"]


# what is copied


async def test_what_is_there_and_what_was_deleted_is_copied(ada: Client, over: Client) -> None:
    for name in ("kept", "deleted"):
        await receive(ada, name)
    await call(ada, "messageDelete", select=inbox("2"))
    key = await start_audit(over, ada, work=False, reason="as ordered")
    before = await one(over, key)
    assert (before["state"], before["messageCount"]) == ("QUEUED", 0)
    assert await tasks.run_next_task(over.world)
    found = await one(over, key)
    assert (found["state"], found["messageCount"], found["createdBy"]) == ("SUCCEEDED", 2, "over")
    assert await copied(over, key) == {"kept": "STORED", "deleted": "ARCHIVED"}
    first, second = found["messages"]["nodes"]
    assert (first["mailboxPath"], first["envelopeFrom"]) == ("INBOX", "carol@example.com")
    assert second["to"] == [{"address": "ada@example.org"}]
    assert found["size"] == first["size"] + second["size"]
    page = (await one(over, key, first=1))["messages"]
    assert (page["totalCount"], page["pageInfo"]["hasNextPage"]) == (2, True)
    rest = await one(over, key, first=1, after=page["pageInfo"]["endCursor"])
    assert rest["messages"]["nodes"] == [second]


async def test_what_comes_later_is_copied_by_every_road(
    ada: Client, bob: Client, over: Client, world: Environment
) -> None:
    key = await start_audit(over, ada)
    await receive(ada, "by LMTP")
    await receive(bob, "not Ada's")
    await call(ada, "messageUpload", mailbox={"path": "INBOX"}, raw="Subject: uploaded\n\nx\n",
               receivedAt="1990-01-01T00:00:00Z")  # fmt: skip
    to = [{"address": "carol@example.com"}]
    for subject, more in (
        ("sent", {}),
        ("draft", {"isDraft": True, "uploadOnly": True}),
        ("without a copy", {}),
    ):
        if subject == "without a copy":
            async with world.write_session() as session:
                await (await session.connection()).execute(text("UPDATE users SET quota = 1"))
        done = await run(ada, "messageSend", "message { id }", subject=subject, to=to,
                         text="x", **more)  # fmt: skip
        assert done["errors"] == []
    async with world.write_session() as session:
        await (await session.connection()).execute(text("UPDATE users SET quota = NULL"))
    assert await copied(over, key) == {
        "by LMTP": "RECEIVED", "uploaded": "SAVED", "sent": "SENT", "draft": "SAVED",
        "without a copy": "SENT",
    }  # fmt: skip
    last = (await one(over, key))["messages"]["nodes"][-1]
    assert (last["mailboxPath"], last["envelopeTo"]) == (None, ["carol@example.com"])


@pytest.mark.parametrize("late", [True, False])
async def test_every_version_of_a_draft_is_copied(ada: Client, over: Client, *, late: bool) -> None:
    """Also where it was saved again before the task came to it."""
    draft = await upload(ada, subject="first", draft=True)
    key = await start_audit(over, ada, work=not late)
    for subject in ("second", "third"):
        saved = {"id": draft["message"]["id"]}
        again = await upload(ada, subject=subject, replacePrevious=saved)
        assert again["errors"] == []
    if late:
        assert await tasks.run_next_task(over.world)
    assert await copied(over, key) == {"first": "STORED", "second": "SAVED", "third": "SAVED"}


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, {"old", "new", "later"}),
        ({"start": "2030-01-02T00:00:00Z"}, {"new", "later"}),
        ({"end": "2030-01-02T00:00:00Z"}, {"old"}),
        ({"start": "2030-01-02T00:00:00Z", "end": "2030-01-03T12:00:00Z"}, {"new"}),
        ({"start": "2031-01-01T00:00:00Z"}, set[str]()),
    ],
)
async def test_only_what_arrives_in_its_time_is_copied(
    ada: Client, over: Client, clock: Clock, given: dict[str, Any], wanted: set[str]
) -> None:
    await receive(ada, "old")
    clock.tick(days=2)
    await receive(ada, "new")
    key = await start_audit(over, ada, **given)
    clock.tick(days=1)
    await receive(ada, "later")
    assert set(await copied(over, key)) == wanted


async def test_each_audit_has_copies_of_its_own_and_chunks_repeat_nothing(
    ada: Client, over: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.admin.audits.CHUNK_SIZE", 2)
    for n in range(5):
        await receive(ada, f"{n}")
    first, second = [await start_audit(over, ada, work=False) for _ in range(2)]
    await receive(ada, "between")
    for _ in range(2):
        assert await tasks.run_next_task(over.world)
    for key in (first, second):
        assert len(await copied(over, key)) == 6
    hashes = await rows(over.world, "SELECT DISTINCT hash FROM audit_copies")
    assert len(hashes) == 12


# how long


async def test_copies_outlive_message_archive_and_account(
    ada: Client, over: Client, root: Client, clock: Clock, world: Environment
) -> None:
    big = raw_message("big", body="x" * 300_000)
    for raw in (big, raw_message("small"), raw_message("late")):
        await receive(ada, raw)
    key = await start_audit(over, ada, work=False)
    await call(ada, "messageDelete", select=inbox("1"))
    await call(ada, "messageDelete", select=inbox("2"), permanent=True)
    assert await copied(over, key) == {"small": "STORED"}  # before it goes, whatever the task does
    clock.tick(days=30)
    await housekeeping.run_round(world)
    assert await rows(world, "SELECT count(*) FROM messages") == [(2,)]  # the audit comes first
    assert await tasks.run_next_task(world)
    await housekeeping.run_round(world)
    assert await rows(world, "SELECT count(*) FROM messages") == [(1,)]
    assert (await run(root, "userPurge", "purged", users={"ids": [id_of(ada)]}))["errors"] == []
    while await tasks.run_next_task(world):
        pass
    assert await rows(world, "SELECT count(*) FROM messages") == [(0,)]
    clock.tick(days=3)
    await collect_garbage(world, world.object_store)
    assert set(await copied(over, key)) == {"small", "big", "late"}
    got = await over.http.get(f"/rest/audits/{key}/export.mbox", headers=over.headers)
    assert big in got.content
    listed = (await over("{ audits { nodes { id username user { id } } } }"))["audits"]["nodes"]
    assert listed == [{"id": key, "username": "ada", "user": None}]


async def test_what_an_account_leaves_is_copied_before_the_task_comes(
    ada: Client, over: Client, root: Client, world: Environment
) -> None:
    await receive(ada, "a")
    await receive(ada, "b")
    await call(ada, "messageDelete", select=inbox("1"))
    key = await start_audit(over, ada, work=False)
    async with world.write_session() as session:  # its task waits for long
        await (await session.connection()).execute(
            text("UPDATE tasks SET not_before = '2034-01-01 00:00:00+00:00'")
        )
    assert (await run(root, "userPurge", "purged", users={"ids": [id_of(ada)]}))["errors"] == []
    while await tasks.run_next_task(world):
        pass
    assert await copied(over, key) == {"a": "ARCHIVED", "b": "STORED"}


async def test_its_end_takes_the_copies_and_says_so(
    ada: Client, over: Client, clock: Clock, world: Environment
) -> None:
    await receive(ada, "a")
    key = await start_audit(over, ada, expires="2030-01-02T00:00:00Z")
    assert (await one(over, key))["endedAt"] is None
    clock.tick(days=1)
    await receive(ada, "b")
    done = await housekeeping.run_round(world)
    assert (done.audits, done.copies) == (1, 1)
    found = await one(over, key)
    assert (found["endedAt"], found["messages"]["nodes"]) == ("2030-01-02T00:00:00Z", [])
    assert await rows(world, "SELECT * FROM audit_blobs") == []
    path = f"/rest/audits/{key}/export.mbox"
    assert (await over.http.get(path, headers=over.headers)).status_code == 404


async def test_only_root_ends_one_before_its_time(
    ada: Client, over: Client, root: Client, world: Environment
) -> None:
    await receive(ada, "a")
    key = await start_audit(over, ada)
    assert [error["code"] for error in (await remove(over, key))["errors"]] == ["FORBIDDEN"]
    missing = global_ids.encode("Audit", 7)
    assert [e["index"] for e in (await remove(root, key, missing))["errors"]] == [1]
    assert (await remove(root, key))["deletedIds"] == [key]
    assert await one(root, key) is None
    await receive(ada, "b")
    await housekeeping.run_round(world)
    for table in ("audits", "audit_copies", "audit_blobs", "audit_accesses"):
        assert await rows(world, f"SELECT * FROM {table}") == []  # noqa: S608


# the chain


@pytest.mark.parametrize(
    ("change", "place"),
    [
        ("UPDATE audit_copies SET envelope_from = 'x@example.com' WHERE position = 2", 2),
        ("UPDATE audit_copies SET digest = 'x' WHERE position = 1", 1),
        ("UPDATE audit_copies SET hash = 'x' WHERE position = 3", 3),
        ("DELETE FROM audit_copies WHERE position = 2", 2),
        ("DELETE FROM audit_copies WHERE position = 3", 3),
        ("UPDATE audits SET copies = 2", 3),
        ("UPDATE audits SET head = 'x'", 4),
    ],
)
async def test_what_was_tampered_with_is_found(
    ada: Client, over: Client, world: Environment, change: str, place: int
) -> None:
    for name in "abc":
        await receive(ada, name)
    key = await start_audit(over, ada)
    assert (await one(over, key))["messageCount"] == 3
    async with world.write_session() as session:
        await (await session.connection()).execute(text(change))
    document = "query ($id: ID!) { audit(id: $id) { brokenPosition } }"
    assert (await over(document, id=key))["audit"] == {"brokenPosition": place}
    (finding,) = (await check_consistency(world)).findings
    assert (finding.subject, finding.found) == ("audits", f"broken at {place}")
    async with world.write_session() as session:
        await (await session.connection()).execute(text("DELETE FROM audits"))


# who sees it


async def test_reading_is_noted_in_the_same_unit(ada: Client, over: Client, root: Client) -> None:
    await receive(ada, "a")
    key = await start_audit(over, ada)
    log = "query ($id: ID!) { audit(id: $id) { accessLog { nodes { actor role action } } } }"
    assert (await root(log, id=key))["audit"]["accessLog"]["nodes"] == []
    (copy,) = (await one(over, key))["messages"]["nodes"]
    await root("query ($id: ID!) { node(id: $id) { id } }", id=copy["id"])
    await over.http.get(f"/rest/audits/{key}/export.mbox", headers=over.headers)
    noted = (await root(log, id=key))["audit"]["accessLog"]["nodes"]
    assert sorted((one["actor"], one["role"], one["action"]) for one in noted) == [
        ("key root", "ROOT", "list"),
        ("over", "ADMIN", "export"),
        ("over", "ADMIN", "list"),
    ]


async def test_the_export_is_a_mailbox_file(
    ada: Client, over: Client, tmp_path: Path, clock: Clock
) -> None:
    sent = [raw_message(f"Letter {n}", body=f"From here\r\n>From there {n}") for n in range(3)]
    for raw in sent:
        await receive(ada, raw)
    key = await start_audit(over, ada)
    url = (await over("query ($id: ID!) { audit(id: $id) { exportUrl } }", id=key))["audit"]
    got = await over.http.get(url["exportUrl"])
    assert (got.status_code, got.headers["content-type"]) == (200, "application/mbox")
    assert got.headers["content-disposition"].startswith("attachment;")
    (tmp_path / "all.mbox").write_bytes(got.content)
    with contextlib.closing(mailbox.mbox(tmp_path / "all.mbox")) as read:
        assert [message["Subject"] for message in read] == ["Letter 0", "Letter 1", "Letter 2"]
    back = [re.sub(rb"(?m)^>(>*From )", rb"\1", part) for part in
            re.split(rb"(?m)^From carol@example.com .*\n", got.content)[1:]]  # fmt: skip
    assert [part.removesuffix(b"\n") for part in back] == sent
    clock.tick(minutes=21)
    assert (await over.http.get(url["exportUrl"])).status_code == 401


@pytest.mark.parametrize(
    ("given", "code", "path"),
    [
        ({"expires": "2029-01-01T00:00:00Z"}, "VALIDATION", ["expires"]),
        ({"expires": "2230-01-01T00:00:00Z"}, "VALIDATION", ["expires"]),
        ({"start": AUDIT_EXPIRES, "end": AUDIT_EXPIRES}, "VALIDATION", ["end"]),
        ({"reason": "x" * 1001}, "VALIDATION", ["reason"]),
        ({"user": {"id": global_ids.encode("User", 7)}}, "NOT_FOUND", ["user"]),
        ({"user": {"username": "over"}}, "FORBIDDEN_OPERATION", ["user"]),
        ({"user": {"username": "chiefest"}}, "FORBIDDEN", ["user"]),
    ],
)
async def test_audits_that_cannot_be_are_refused(
    ada: Client, over: Client, given: dict[str, Any], code: str, path: list[str]
) -> None:
    await make_client(over.world, over.http, "chiefest", role=Role.ROOT)
    asked = {"user": {"id": id_of(ada)}, "expires": AUDIT_EXPIRES, **given}
    (error,) = (await run(over, "auditCreate", AUDIT_PAYLOAD, **asked))["errors"]
    assert (error["code"], error["path"]) == (code, path)
    assert await rows(over.world, "SELECT id FROM audits") == []


async def everything(client: Client, keys: Mapping[str, str], name: str) -> str:
    """What somebody learns who asks in every way for an audit, its copies and its task."""
    documents = [
        *(f'{{ node(id: "{key}") {{ id }} }}' for key in keys.values()),
        "{ tasks { totalCount nodes { id kind } } }",
        "{ audits { totalCount nodes { id } } }",
        f'{{ audit(id: "{keys["Audit"]}") {{ id messages {{ nodes {{ id }} }} }} }}',
        f'{{ task(id: "{keys["Task"]}") {{ id }} }}',
        "{ adminLog { totalCount nodes { mutation targetId after } } }",
        f'{{ user(by: {{username: "{name}"}}) {{ messageCount limits {{ quota {{ used }} }} '
        "archivedMessages { totalCount } messages { totalCount } authLog { totalCount } } }",
    ]
    found = [await client.raw(document) for document in documents]
    path = f"/rest/audits/{keys['Audit']}/export.mbox"
    answer = await client.http.get(path, headers=client.headers)
    assert answer.status_code in (403, 404)
    cancel = await run(client, "taskCancel", "tasks { id }", ids=[keys["Task"]])
    assert [error["code"] for error in cancel["errors"]] == ["NOT_FOUND"]
    return re.sub(r'"available": [0-9]+', "", json.dumps(found))  # points that are left to spend


@pytest.mark.parametrize("who", ["audited", "stranger", "chief", "eve"])
async def test_nobody_else_learns_anything(
    ada: Client, bob: Client, over: Client, world: Environment, who: str
) -> None:
    eve = await make_client(world, over.http, "eve", role=Role.ADMIN)
    chief = await make_domain_admin(world, over.http, "chief", list(AdminPermission))
    client = {"audited": ada, "stranger": bob, "chief": chief, "eve": eve}[who]
    audited = eve if who == "eve" else ada
    await receive(audited, "a")
    name = audited.user.username
    nothing = {kind: global_ids.encode(kind, 7) for kind in ("Audit", "AuditedMessage",
    "AuditAccess",
                                                      "Task")}  # fmt: skip
    before = await everything(client, nothing, name)
    last = await reached(world, audited.user.id)
    there = {"Audit": await start_audit(over, audited)}
    there["AuditedMessage"] = (await one(over, there["Audit"]))["messages"]["nodes"][0]["id"]
    for kind, table in (("AuditAccess", "audit_accesses"), ("Task", "tasks")):
        ((key,),) = await rows(world, f"SELECT id FROM {table}")  # noqa: S608
        there[kind] = global_ids.encode(kind, key)
    learnt = await everything(client, there, name)
    for kind, key in there.items():
        learnt = learnt.replace(key, nothing[kind])
    assert learnt == before
    assert await journal(world, audited.user.id, last) == []


async def test_an_unaudited_delivery_costs_what_it_did(
    ada: Client, over: Client, statements: list[str]
) -> None:
    counts: list[list[str]] = []
    for audited in (False, True, True):
        if audited and len(counts) == 1:
            await start_audit(over, ada)
        del statements[:]
        await receive(ada, f"{len(counts)}")
        counts.append([one for one in statements if "audit" in one and "UPDATE mail" not in one])
    assert counts[0] == []
    assert len(counts[1]) == len(counts[2]) <= 8
