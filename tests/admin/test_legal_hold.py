"""Legal holds: which messages are copied, when copies end, tampering, and who can read them."""

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
from tests.conftest import GraphQLClient, ManualClock, deliver_to, make_client, raw_message
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import ERROR_FIELDS, execute_mutation, user_global_id
from tests.support.case_loop import each_case
from tests.support.operations.bulk_operations import inbox_selection, run_message_mutation
from tests.support.operations.id_references import id_refs
from tests.support.operations.message_sources import save_draft
from tests.support.operations.platform.legal_hold_operations import (
    LEGAL_HOLD_EXPIRES,
    LEGAL_HOLD_FIELDS,
    LEGAL_HOLD_PAYLOAD,
    start_legal_hold,
)
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

COPY = """position origin mailboxPath subject from { address } to { address } size sha256 chainHash
  preview
  envelopeFrom envelopeTo receivedAt copiedAt hasAttachments"""
LEGAL_HOLD_QUERY = f"""query ($id: ID!, $orderBy: HeldCopyOrder! = POSITION_ASC, $first: Int,
    $after: String) {{
  legalHold(by: {{id: $id}}) {{ {LEGAL_HOLD_FIELDS}
  messages(orderBy: $orderBy, first: $first, after: $after) {{
    nodes {{ id {COPY} }} totalCount pageInfo {{ hasNextPage endCursor }} }} }} }}"""
pytestmark = pytest.mark.usefixtures("verify_consistency")


async def load_legal_hold(client: GraphQLClient, legal_hold_id: str, **variables: Any) -> Any:
    legal_hold = (await client(LEGAL_HOLD_QUERY, id=legal_hold_id, **variables))["legalHold"]
    assert legal_hold is None or legal_hold["brokenPosition"] is None
    return legal_hold


async def load_copy_origins(client: GraphQLClient, legal_hold_id: str) -> dict[str, str]:
    """Return the origin (`origin`) of each copy by subject."""
    nodes = (await load_legal_hold(client, legal_hold_id, first=250))["messages"]["nodes"]
    assert [node["position"] for node in nodes] == list(range(1, len(nodes) + 1))
    return {node["subject"]: node["origin"] for node in nodes}


async def delete_legal_holds(client: GraphQLClient, *legal_hold_ids: str) -> Any:
    document = f"""mutation ($refs: [LegalHoldRef!]!) {{
      legalHoldEnd(input: {{legalHolds: $refs}}) {{ deletedIds {ERROR_FIELDS} }} }}"""
    return (await client(document, refs=id_refs(legal_hold_ids)))["legalHoldEnd"]


async def test_stored_and_deleted_messages_are_copied(
    ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    for name in ("kept", "deleted"):
        await deliver_to(ada, name)
    await run_message_mutation(ada, "messageDelete", select=inbox_selection("2"))
    legal_hold_id = await start_legal_hold(admin_client, ada, runs_task=False, reason="as ordered")
    queued = await load_legal_hold(admin_client, legal_hold_id)
    assert (queued["state"], queued["messageCount"]) == ("QUEUED", 0)
    assert await tasks.run_next_task(admin_client.environment)
    legal_hold = await load_legal_hold(admin_client, legal_hold_id)
    assert (legal_hold["state"], legal_hold["messageCount"], legal_hold["createdBy"]) == (
        "SUCCEEDED",
        2,
        "over",
    )
    assert await load_copy_origins(admin_client, legal_hold_id) == {
        "kept": "STORED",
        "deleted": "DELETED",
    }
    first, second = legal_hold["messages"]["nodes"]
    assert (first["mailboxPath"], first["envelopeFrom"]) == ("INBOX", "carol@example.com")
    assert second["to"] == [{"address": "ada@example.org"}]
    assert legal_hold["size"] == first["size"] + second["size"]
    page = (await load_legal_hold(admin_client, legal_hold_id, first=1))["messages"]
    assert (page["totalCount"], page["pageInfo"]["hasNextPage"]) == (2, True)
    rest = await load_legal_hold(
        admin_client, legal_hold_id, first=1, after=page["pageInfo"]["endCursor"]
    )
    assert rest["messages"]["nodes"] == [second]
    last = await load_legal_hold(admin_client, legal_hold_id, first=1, orderBy="POSITION_DESC")
    assert (last["messages"]["totalCount"], last["messages"]["nodes"]) == (2, [second])


async def test_later_messages_of_every_origin_are_copied(
    ada: GraphQLClient, bob: GraphQLClient, admin_client: GraphQLClient, environment: Environment
) -> None:
    legal_hold_id = await start_legal_hold(admin_client, ada)
    await deliver_to(ada, "by LMTP")
    await deliver_to(bob, "not Ada's")
    await run_message_mutation(
        ada,
        "messageImport",
        mailbox={"path": "INBOX"},
        raw="Subject: uploaded\n\nx\n",
        receivedAt="1990-01-01T00:00:00Z",
    )
    recipients = [{"address": "carol@example.com"}]
    for subject in ("sent", "without a copy"):
        if subject == "without a copy":
            async with environment.write_session() as session:
                await (await session.connection()).execute(text("UPDATE users SET quota = 1"))
        payload = await execute_mutation(
            ada, "messageSend", "messages { id }", subject=subject, to=recipients, text="x"
        )
        assert payload["errors"] == []
    async with environment.write_session() as session:
        await (await session.connection()).execute(text("UPDATE users SET quota = NULL"))
    assert (await save_draft(ada, subject="draft", to=recipients, text="x"))["errors"] == []
    assert await load_copy_origins(admin_client, legal_hold_id) == {
        "by LMTP": "RECEIVED", "uploaded": "SAVED", "sent": "SENT", "draft": "SAVED",
        "without a copy": "SENT",
    }  # fmt: skip
    copies = (await load_legal_hold(admin_client, legal_hold_id))["messages"]["nodes"]
    last_copy = copies[-2]  # before the draft
    assert (last_copy["mailboxPath"], last_copy["envelopeTo"]) == (None, ["carol@example.com"])


@pytest.mark.parametrize("runs_late", [True, False])
async def test_every_version_of_a_draft_is_copied(
    ada: GraphQLClient, admin_client: GraphQLClient, *, runs_late: bool
) -> None:
    """Also if the draft was saved again before the task began."""
    draft = await save_draft(ada, subject="first")
    legal_hold_id = await start_legal_hold(admin_client, ada, runs_task=not runs_late)
    for subject in ("second", "third"):
        previous = {"id": draft["message"]["id"]}
        payload = await save_draft(ada, subject=subject, draft=previous)
        assert payload["errors"] == []
    if runs_late:
        assert await tasks.run_next_task(admin_client.environment)
    assert await load_copy_origins(admin_client, legal_hold_id) == {
        "first": "STORED",
        "second": "SAVED",
        "third": "SAVED",
    }


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({}, {"old", "new", "later"}),
        ({"startsAt": "2030-01-02T00:00:00Z"}, {"new", "later"}),
        ({"endsAt": "2030-01-02T00:00:00Z"}, {"old"}),
        ({"startsAt": "2030-01-02T00:00:00Z", "endsAt": "2030-01-03T12:00:00Z"}, {"new"}),
        ({"startsAt": "2031-01-01T00:00:00Z"}, set[str]()),
    ],
)
async def test_only_messages_in_the_time_range_are_copied(
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    clock: ManualClock,
    arguments: dict[str, Any],
    expected: set[str],
) -> None:
    await deliver_to(ada, "old")
    clock.tick(days=2)
    await deliver_to(ada, "new")
    legal_hold_id = await start_legal_hold(admin_client, ada, **arguments)
    clock.tick(days=1)
    await deliver_to(ada, "later")
    assert set(await load_copy_origins(admin_client, legal_hold_id)) == expected


async def test_legal_holds_have_separate_copies_without_duplicates(
    ada: GraphQLClient, admin_client: GraphQLClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.admin.held_copy_task.CHUNK_SIZE", 2)
    for n in range(5):
        await deliver_to(ada, f"{n}")
    first, second = [await start_legal_hold(admin_client, ada, runs_task=False) for _ in range(2)]
    await deliver_to(ada, "between")
    for _ in range(2):
        assert await tasks.run_next_task(admin_client.environment)
    for legal_hold_id in (first, second):
        assert len(await load_copy_origins(admin_client, legal_hold_id)) == 6
    hashes = await select_rows(
        admin_client.environment, "SELECT DISTINCT chain_hash FROM held_copies"
    )
    assert len(hashes) == 12


async def test_copies_outlive_message_archive_and_account(
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    root: GraphQLClient,
    clock: ManualClock,
    environment: Environment,
) -> None:
    large_raw = raw_message("big", body="x" * 300_000)
    for raw in (large_raw, raw_message("small"), raw_message("late")):
        await deliver_to(ada, raw)
    legal_hold_id = await start_legal_hold(admin_client, ada, runs_task=False)
    await run_message_mutation(ada, "messageDelete", select=inbox_selection("1"))
    await run_message_mutation(ada, "messageDelete", select=inbox_selection("2"), permanent=True)
    # copied before the permanent deletion, whatever the task does
    assert await load_copy_origins(admin_client, legal_hold_id) == {"small": "STORED"}
    clock.tick(days=30)
    await housekeeping.run_housekeeping_round(environment)
    # not deleted, since the legal hold has not copied it yet
    assert await select_rows(environment, "SELECT count(*) FROM messages") == [(2,)]
    assert await tasks.run_next_task(environment)
    await housekeeping.run_housekeeping_round(environment)
    assert await select_rows(environment, "SELECT count(*) FROM messages") == [(1,)]
    assert (
        await execute_mutation(root, "userPurge", "purgedIds", users={"ids": [user_global_id(ada)]})
    )["errors"] == []
    while await tasks.run_next_task(environment):
        pass
    assert await select_rows(environment, "SELECT count(*) FROM messages") == [(0,)]
    clock.tick(days=3)
    await collect_garbage(environment, environment.object_store)
    assert set(await load_copy_origins(admin_client, legal_hold_id)) == {"small", "big", "late"}
    response = await admin_client.http.get(
        f"/rest/legal-holds/{legal_hold_id}/export.mbox", headers=admin_client.headers
    )
    assert large_raw in response.content
    legal_holds = (await admin_client("{ legalHolds { nodes { id username user { id } } } }"))[
        "legalHolds"
    ]["nodes"]
    assert legal_holds == [{"id": legal_hold_id, "username": "ada", "user": None}]


async def test_purged_messages_are_copied_before_the_task_runs(
    ada: GraphQLClient, admin_client: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    await deliver_to(ada, "a")
    await deliver_to(ada, "b")
    await run_message_mutation(ada, "messageDelete", select=inbox_selection("1"))
    legal_hold_id = await start_legal_hold(admin_client, ada, runs_task=False)
    async with environment.write_session() as session:  # the task of the legal hold doesn't run
        await (await session.connection()).execute(
            text("UPDATE tasks SET not_before = '2034-01-01 00:00:00+00:00'")
        )
    assert (
        await execute_mutation(root, "userPurge", "purgedIds", users={"ids": [user_global_id(ada)]})
    )["errors"] == []
    while await tasks.run_next_task(environment):
        pass
    assert await load_copy_origins(admin_client, legal_hold_id) == {"a": "DELETED", "b": "STORED"}


async def test_expiry_deletes_the_copies_and_sets_ended_at(
    ada: GraphQLClient, admin_client: GraphQLClient, clock: ManualClock, environment: Environment
) -> None:
    await deliver_to(ada, "a")
    legal_hold_id = await start_legal_hold(admin_client, ada, expiresAt="2030-01-02T00:00:00Z")
    assert (await load_legal_hold(admin_client, legal_hold_id))["endedAt"] is None
    clock.tick(days=1)
    await deliver_to(ada, "b")
    counts = await housekeeping.run_housekeeping_round(environment)
    assert (counts.legal_holds, counts.copies) == (1, 1)
    legal_hold = await load_legal_hold(admin_client, legal_hold_id)
    assert (legal_hold["endedAt"], legal_hold["messages"]["nodes"]) == ("2030-01-02T00:00:00Z", [])
    assert await select_rows(environment, "SELECT * FROM legal_hold_blobs") == []
    path = f"/rest/legal-holds/{legal_hold_id}/export.mbox"
    assert (await admin_client.http.get(path, headers=admin_client.headers)).status_code == 404


async def test_only_root_can_delete_an_legal_hold(
    ada: GraphQLClient, admin_client: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    await deliver_to(ada, "a")
    legal_hold_id = await start_legal_hold(admin_client, ada)
    assert [
        error["code"] for error in (await delete_legal_holds(admin_client, legal_hold_id))["errors"]
    ] == ["FORBIDDEN"]
    missing_id = global_ids.encode("LegalHold", 7)
    assert [
        e["path"] for e in (await delete_legal_holds(root, legal_hold_id, missing_id))["errors"]
    ] == [["legalHolds", "1"]]
    assert (await delete_legal_holds(root, legal_hold_id))["deletedIds"] == [legal_hold_id]
    assert await load_legal_hold(root, legal_hold_id) is None
    await deliver_to(ada, "b")
    await housekeeping.run_housekeeping_round(environment)
    for table in ("legal_holds", "held_copies", "legal_hold_blobs", "legal_hold_accesses"):
        assert await select_rows(environment, f"SELECT * FROM {table}") == []  # noqa: S608


@pytest.mark.parametrize(
    ("tampering", "broken_position"),
    [
        ("UPDATE held_copies SET envelope_from = 'x@example.com' WHERE position = 2", 2),
        ("UPDATE held_copies SET sha256 = 'x' WHERE position = 1", 1),
        ("UPDATE held_copies SET chain_hash = 'x' WHERE position = 3", 3),
        ("DELETE FROM held_copies WHERE position = 2", 2),
        ("DELETE FROM held_copies WHERE position = 3", 3),
        ("UPDATE legal_holds SET copies = 2", 3),
        ("UPDATE legal_holds SET head = 'x'", 4),
    ],
)
async def test_tampering_with_copies_is_detected(
    ada: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
    tampering: str,
    broken_position: int,
) -> None:
    for name in "abc":
        await deliver_to(ada, name)
    legal_hold_id = await start_legal_hold(admin_client, ada)
    assert (await load_legal_hold(admin_client, legal_hold_id))["messageCount"] == 3
    async with environment.write_session() as session:
        await (await session.connection()).execute(text(tampering))
    document = "query ($id: ID!) { legalHold(by: {id: $id}) { brokenPosition } }"
    assert (await admin_client(document, id=legal_hold_id))["legalHold"] == {
        "brokenPosition": broken_position
    }
    (finding,) = (await check_consistency(environment)).findings
    assert (finding.subject, finding.found) == ("legal_holds", f"broken at {broken_position}")
    async with environment.write_session() as session:
        await (await session.connection()).execute(text("DELETE FROM legal_holds"))


async def test_each_access_is_logged(
    ada: GraphQLClient, admin_client: GraphQLClient, root: GraphQLClient
) -> None:
    await deliver_to(ada, "a")
    legal_hold_id = await start_legal_hold(admin_client, ada)
    document = """query ($id: ID!, $orderBy: LegalHoldAccessOrder! = AT_DESC) {
      legalHold(by: {id: $id}) { accessLog(orderBy: $orderBy) {
        nodes { actor role action } } } }"""
    assert (await root(document, id=legal_hold_id))["legalHold"]["accessLog"]["nodes"] == []
    (copy,) = (await load_legal_hold(admin_client, legal_hold_id))["messages"]["nodes"]
    await root("query ($id: ID!) { node(id: $id) { id } }", id=copy["id"])
    await admin_client.http.get(
        f"/rest/legal-holds/{legal_hold_id}/export.mbox", headers=admin_client.headers
    )
    accesses = (await root(document, id=legal_hold_id))["legalHold"]["accessLog"]["nodes"]
    assert sorted((access["actor"], access["role"], access["action"]) for access in accesses) == [
        ("key root", "ROOT", "LIST"),
        ("over", "ADMIN", "EXPORT"),
        ("over", "ADMIN", "LIST"),
    ]
    oldest_first = await root(document, id=legal_hold_id, orderBy="AT_ASC")
    assert oldest_first["legalHold"]["accessLog"]["nodes"] == accesses[::-1]


async def test_export_is_an_mbox_file(
    ada: GraphQLClient, admin_client: GraphQLClient, tmp_path: Path, clock: ManualClock
) -> None:
    messages = [raw_message(f"Letter {n}", body=f"From here\r\n>From there {n}") for n in range(3)]
    for raw in messages:
        await deliver_to(ada, raw)
    legal_hold_id = await start_legal_hold(admin_client, ada)
    legal_hold = (
        await admin_client(
            "query ($id: ID!) { legalHold(by: {id: $id}) { exportUrl } }", id=legal_hold_id
        )
    )["legalHold"]
    response = await admin_client.http.get(legal_hold["exportUrl"])
    assert (response.status_code, response.headers["content-type"]) == (200, "application/mbox")
    assert response.headers["content-disposition"].startswith("attachment;")
    (tmp_path / "all.mbox").write_bytes(response.content)
    with contextlib.closing(mailbox.mbox(tmp_path / "all.mbox")) as exported:
        assert [message["Subject"] for message in exported] == ["Letter 0", "Letter 1", "Letter 2"]
    unescaped = [re.sub(rb"(?m)^>(>*From )", rb"\1", part) for part in
            re.split(rb"(?m)^From carol@example.com .*\n", response.content)[1:]]  # fmt: skip
    assert [part.removesuffix(b"\n") for part in unescaped] == messages
    clock.tick(minutes=21)
    assert (await admin_client.http.get(legal_hold["exportUrl"])).status_code == 401


async def test_invalid_legal_hold_is_refused(
    ada: GraphQLClient, admin_client: GraphQLClient
) -> None:
    await make_client(admin_client.environment, admin_client.http, "chiefest", role=Role.ROOT)
    cases: list[tuple[dict[str, Any], str, list[str]]] = [
        ({"expiresAt": "2029-01-01T00:00:00Z"}, "VALIDATION", ["expiresAt"]),
        ({"expiresAt": "2230-01-01T00:00:00Z"}, "VALIDATION", ["expiresAt"]),
        ({"startsAt": LEGAL_HOLD_EXPIRES, "endsAt": LEGAL_HOLD_EXPIRES}, "VALIDATION", ["endsAt"]),
        ({"reason": "x" * 1001}, "VALIDATION", ["reason"]),
        ({"user": {"id": global_ids.encode("User", 7)}}, "NOT_FOUND", ["user"]),
        ({"user": {"username": "over"}}, "FORBIDDEN_OPERATION", ["user"]),
        ({"user": {"username": "chiefest"}}, "FORBIDDEN", ["user"]),
    ]
    for case in each_case(cases):
        with case as (arguments, code, path):
            legal_hold_input = {
                "user": {"id": user_global_id(ada)},
                "expiresAt": LEGAL_HOLD_EXPIRES,
                **arguments,
            }
            (error,) = (
                await execute_mutation(
                    admin_client, "legalHoldCreate", LEGAL_HOLD_PAYLOAD, **legal_hold_input
                )
            )["errors"]
            assert (error["code"], error["path"]) == (code, path)
            assert await select_rows(admin_client.environment, "SELECT id FROM legal_holds") == []


async def read_all_answers(
    client: GraphQLClient, ids_by_kind: Mapping[str, str], username: str
) -> str:
    """Query the legal hold, its copies and its task in every way. Return the answers as text."""
    documents = [
        *(f'{{ node(id: "{node_id}") {{ id }} }}' for node_id in ids_by_kind.values()),
        "{ tasks { totalCount nodes { id kind } } }",
        "{ legalHolds { totalCount nodes { id } } }",
        f'{{ legalHold(by: {{id: "{ids_by_kind["LegalHold"]}"}}) {{ '
        "id messages { nodes { id } } } }",
        f'{{ task(by: {{id: "{ids_by_kind["Task"]}"}}) {{ id }} }}',
        "{ auditLog { totalCount nodes { mutation targetId after } } }",
        f'{{ user(by: {{username: "{username}"}}) {{ messageCount limits {{ quota {{ used }} }} '
        "deletedMessages { totalCount } messages { totalCount } securityLog { totalCount } } }",
    ]
    answers = [await client.execute(document) for document in documents]
    path = f"/rest/legal-holds/{ids_by_kind['LegalHold']}/export.mbox"
    response = await client.http.get(path, headers=client.headers)
    assert response.status_code in (403, 404)
    payload = await execute_mutation(
        client, "taskCancel", "tasks { id }", tasks=[{"id": ids_by_kind["Task"]}]
    )
    assert [error["code"] for error in payload["errors"]] == ["NOT_FOUND"]
    return re.sub(r'"available": [0-9]+', "", json.dumps(answers))  # the remaining rate budget


@pytest.mark.parametrize("viewer_name", ["audited", "stranger", "chief", "eve"])
async def test_other_users_cannot_notice_an_legal_hold(
    ada: GraphQLClient,
    bob: GraphQLClient,
    admin_client: GraphQLClient,
    environment: Environment,
    viewer_name: str,
) -> None:
    eve = await make_client(environment, admin_client.http, "eve", role=Role.ADMIN)
    domain_admin = await make_domain_admin(
        environment, admin_client.http, "chief", list(AdminPermission)
    )
    client = {"audited": ada, "stranger": bob, "chief": domain_admin, "eve": eve}[viewer_name]
    audited = eve if viewer_name == "eve" else ada
    await deliver_to(audited, "a")
    name = audited.user.username
    missing_ids = {kind: global_ids.encode(kind, 7) for kind in ("LegalHold", "HeldCopy",
    "LegalHoldAccess",
                                                      "Task")}  # fmt: skip
    answers_before = await read_all_answers(client, missing_ids, name)
    position = await load_stream_position(environment, audited.user.id)
    ids_by_kind = {"LegalHold": await start_legal_hold(admin_client, audited)}
    ids_by_kind["HeldCopy"] = (await load_legal_hold(admin_client, ids_by_kind["LegalHold"]))[
        "messages"
    ]["nodes"][0]["id"]
    for kind, table in (("LegalHoldAccess", "legal_hold_accesses"), ("Task", "tasks")):
        ((row_id,),) = await select_rows(environment, f"SELECT id FROM {table}")  # noqa: S608
        ids_by_kind[kind] = global_ids.encode(kind, row_id)
    answers = await read_all_answers(client, ids_by_kind, name)
    for kind, row_id in ids_by_kind.items():
        answers = answers.replace(row_id, missing_ids[kind])
    assert answers == answers_before
    assert await load_journal_entries(environment, audited.user.id, position) == []


async def test_delivery_without_legal_hold_needs_no_legal_hold_statements(
    ada: GraphQLClient, admin_client: GraphQLClient, statements: list[str]
) -> None:
    counts = []
    for number in range(4):
        if number == 1:
            await start_legal_hold(admin_client, ada)
        del statements[:]
        await deliver_to(ada, f"{number}")
        counts.append(
            sum(
                "legal_hold" in statement or "held_copies" in statement
                for statement in statements
                if not statement.startswith("UPDATE mailboxes")  # it asks for a legal hold as well
            )
        )
    assert counts == [0, 6, 6, 6]
