"""Test creating, renaming, deleting and reading mailboxes."""

import asyncio
import hashlib
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from graph.types import global_ids
from mail.mailboxes import paths
from models.errors import Conflict, LimitReached
from models.events.event_types import EventType
from models.mailboxes.tables import Mailbox
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import rename as mailbox_rename
from resolvers.mailboxes.create import NewMailboxes
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.mailboxes.rename import MailboxRename
from tests.conftest import GraphQLClient, ManualClock, client_context, deliver_to, make_api_key
from tests.support.case_loop import each_case
from tests.support.operations.mailbox_operations import (
    DEFAULT_MAILBOXES,
    MAILBOX_CREATE,
    MAILBOX_DELETE,
    append_unread_messages,
    context_with_options,
    create_mailboxes,
    delete_mailboxes,
    list_mailbox_paths,
    rename_mailbox,
)
from tests.support.schema.error_paths import field_path, item_index
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

pytestmark = pytest.mark.usefixtures("verify_counters")


async def test_mailbox_is_created_with_missing_parents(ada: GraphQLClient) -> None:
    last = await load_stream_position(ada.environment, ada.user.id)
    mailboxes, errors = await create_mailboxes(
        ada, "/Clients/Ünal/2030/", hidden=False, retention="P30D", subscribe=False
    )
    assert errors == []
    without_id = [{k: v for k, v in mailbox.items() if k != "id"} for mailbox in mailboxes]
    assert without_id == [
        {
            "path": "Clients/Ünal/2030", "name": "2030", "specialUse": None, "subscribed": False,
            "hidden": False, "retention": "P30D", "parent": {"path": "Clients/Ünal"},
        }
    ]  # fmt: skip
    assert await list_mailbox_paths(ada) == [
        "INBOX",
        "Clients",
        "Clients/Ünal",
        "Clients/Ünal/2030",
        *DEFAULT_MAILBOXES[1:],
    ]
    assert (await ada.load_mailbox("Clients")).subscribed
    ((kind, mailbox_ids),) = await load_journal_entries(ada.environment, ada.user.id, last)
    assert (kind, len(mailbox_ids)) == (EventType.MAILBOX_CREATED, 3)


async def test_several_mailboxes_are_created_all_or_none(ada: GraphQLClient) -> None:
    mailboxes, errors = await create_mailboxes(ada, "A/B", "A", "C")
    assert ([mailbox["path"] for mailbox in mailboxes], errors) == (["A/B", "A", "C"], [])
    mailboxes, (error,) = await create_mailboxes(ada, "D", "A/B")
    assert (mailboxes, error["code"], field_path(error), item_index(error)) == (
        [],
        "CONFLICT",
        ["paths"],
        1,
    )
    _, (error,) = await create_mailboxes(ada, "D", "D")
    assert (error["code"], item_index(error)) == ("CONFLICT", 1)
    assert "D" not in await list_mailbox_paths(ada)


async def test_invalid_path_is_reported_with_its_index(ada: GraphQLClient) -> None:
    cases: list[str] = [
        "", "/", "//", "//A", "A//", "A//B", "A/ /B", " ", "A/\n", "A\x01B", "\x7f",
        "x" * 513, "A/" * 128 + "A",
    ]  # fmt: skip
    for case in each_case(cases):
        with case as invalid_path:
            mailboxes, (error,) = await create_mailboxes(ada, "Good", invalid_path)
            assert mailboxes == []
            assert (field_path(error), item_index(error), error["constraint"]) == (
                ["paths"],
                1,
                "PATTERN",
            )


async def test_path_is_normalized(ada: GraphQLClient) -> None:
    cases: list[tuple[str, str]] = [
        ("/A/", "A"), ("A/x" + "x" * 511, "A/x" + "x" * 511), ("A." * 40, "A." * 40),
        ("a\u0308", "ä"), ("inbox/Sub", "INBOX/Sub"), ("InBoX/Other", "INBOX/Other"),
        ("A/inbox", "A/inbox"), ("a%b*c&d\\", "a%b*c&d\\"), ("A/" * 127 + "A", "A/" * 127 + "A"),
    ]  # fmt: skip
    for case in each_case(cases):
        with case as (written, expected):
            mailboxes, errors = await create_mailboxes(ada, written)
            assert ([mailbox["path"] for mailbox in mailboxes], errors) == ([expected], [])
            document = "query ($path: String!) { mailbox(by: {path: $path}) { path } }"
            assert await ada(document, path=written) == {"mailbox": {"path": expected}}


async def test_longest_allowed_path_is_accepted(ada: GraphQLClient) -> None:
    levels = [hashlib.shake_256(bytes([nth])).hexdigest(256) for nth in range(paths.MAX_LEVELS)]
    assert {len(level) for level in levels} == {paths.MAX_LEVEL_LENGTH}
    path = "/".join(levels)
    mailboxes, errors = await create_mailboxes(ada, path)
    assert ([mailbox["path"] for mailbox in mailboxes], errors) == ([path], [])
    (error,) = (await create_mailboxes(ada, path))[1]
    assert error["code"] == "CONFLICT"


async def test_inbox_name_is_case_insensitive(ada: GraphQLClient) -> None:
    for written in ("INBOX", "inbox", "/Inbox/"):
        _, (error,) = await create_mailboxes(ada, written)
        assert (error["code"], item_index(error)) == ("CONFLICT", 0)
    assert (await create_mailboxes(ada, "drafts"))[1] == []  # other names are case-sensitive


async def test_create_without_paths_or_with_ambiguous_special_use_is_refused(
    ada: GraphQLClient,
) -> None:
    _, (error,) = await create_mailboxes(ada)
    assert (error["path"], error["constraint"]) == (["paths"], "REQUIRED")
    _, (error,) = await create_mailboxes(ada, "A", "B", specialUse="ARCHIVE")
    assert (error["path"], error["constraint"]) == (["specialUse"], "EXCLUSIVE")


async def test_special_use_has_one_mailbox(ada: GraphQLClient, bob: GraphQLClient) -> None:
    mailboxes, errors = await create_mailboxes(ada, "Old", specialUse="ARCHIVE")
    assert (mailboxes[0]["specialUse"], errors) == ("ARCHIVE", [])
    for special_use in ("ARCHIVE", "SENT", "INBOX"):
        mailboxes, (error,) = await create_mailboxes(ada, "Other", specialUse=special_use)
        assert (mailboxes, error["code"], error["path"]) == ([], "CONFLICT", ["specialUse"])
    assert (await create_mailboxes(bob, "Old", specialUse="ARCHIVE"))[1] == []
    assert "Other" not in await list_mailbox_paths(ada)


async def test_mailbox_limit_is_exact(ada: GraphQLClient) -> None:
    ctx = context_with_options(ada, mailboxes_max_per_user=10)
    await mailbox_create.create_mailboxes(ctx, NewMailboxes(["A/B/C", "D"]))
    with pytest.raises(LimitReached) as raised:
        await mailbox_create.create_mailboxes(ctx, NewMailboxes(["E/F"]))
    assert (raised.value.limit, raised.value.used, raised.value.path) == (10, 9, ["paths"])
    await mailbox_create.create_mailboxes(ctx, NewMailboxes(["E"]))
    with pytest.raises(LimitReached):
        await mailbox_create.create_mailboxes(ctx, NewMailboxes(["F"]))
    with pytest.raises(LimitReached) as raised:
        await mailbox_rename.rename_mailbox(ctx, MailboxRename(MailboxSelector(path="E"), "F/E"))
    assert raised.value.path == ["newPath"]
    await mailbox_rename.rename_mailbox(ctx, MailboxRename(MailboxSelector(path="E"), "A/E"))


async def test_validate_only_and_idempotency_key_of_create(ada: GraphQLClient) -> None:
    (validated,), errors = await create_mailboxes(ada, "A", options={"validateOnly": True})
    assert (validated["path"], errors) == ("A", [])
    first, _ = await create_mailboxes(ada, "A", options={"idempotencyKey": "k"})
    repeated, errors = await create_mailboxes(ada, "A", options={"idempotencyKey": "k"})
    assert (first, errors) == (repeated, [])
    assert len(await list_mailbox_paths(ada)) == 6


async def test_concurrent_creates_with_one_idempotency_key_run_once(ada: GraphQLClient) -> None:
    arguments = {"paths": ["A"], "options": {"idempotencyKey": "k"}}
    responses = await asyncio.gather(*(ada(MAILBOX_CREATE, input=arguments) for _ in range(2)))
    answers = [answer["mailboxCreate"] for answer in responses]
    assert [answer["errors"] for answer in answers] == [[], []]
    assert sorted(answer["replayed"] for answer in answers) == [False, True]
    changed = (await ada(MAILBOX_CREATE, input={**arguments, "paths": ["B"]}))["mailboxCreate"]
    assert [e["path"] for e in changed["errors"]] == [["options", "idempotencyKey"]]


async def test_combined_transaction_is_rolled_back_as_a_whole(ada: GraphQLClient) -> None:
    ctx = client_context(ada)
    last = await load_stream_position(ada.environment, ada.user.id)
    async with ctx.combined_transaction(commit=False):
        await mailbox_create.create_mailboxes(ctx, NewMailboxes(["A"]))
        with pytest.raises(Conflict):  # a savepoint: the outer transaction continues
            await mailbox_create.create_mailboxes(ctx, NewMailboxes(["B", "A"]))
        mailbox_rows = await mailbox_loaders.load_visible_mailboxes_of_user(
            ctx, ada.user.id, {"path"}
        )
        assert [row.path for row in mailbox_rows][:2] == ["INBOX", "A"]
        assert ctx.committed_position == {ada.user.id: last + 1}
    assert await list_mailbox_paths(ada) == DEFAULT_MAILBOXES


async def test_mailbox_create_needs_write_scope(ada: GraphQLClient) -> None:
    secret = await make_api_key(
        ada.environment, "reader", user_id=ada.user.id, role=Role.USER, scopes=[Scope.MAIL_READ]
    )
    reader = replace(ada, secret=secret)
    assert await list_mailbox_paths(reader) == DEFAULT_MAILBOXES
    mailboxes, (error,) = await create_mailboxes(reader, "A")
    assert (mailboxes, error["__typename"], error["code"]) == ([], "ForbiddenError", "FORBIDDEN")


async def test_rename_moves_only_submailboxes(ada: GraphQLClient) -> None:
    await create_mailboxes(ada, "work", "work/a_b/c", "Work/x", "work%/y", "workshop", "work.z")
    before = {
        mailbox: (await ada.load_mailbox(mailbox)).id
        for mailbox in ("work", "work/a_b", "work/a_b/c")
    }
    last = await load_stream_position(ada.environment, ada.user.id)
    answer = await rename_mailbox(ada, "work", "Done/2030/Job")
    assert answer["errors"] == []
    new_paths = ["Done/2030/Job", "Done/2030/Job/a_b", "Done/2030/Job/a_b/c"]
    assert [mailbox["path"] for mailbox in answer["mailboxes"]] == new_paths
    assert [(await ada.load_mailbox(path)).id for path in new_paths] == list(before.values())
    assert await list_mailbox_paths(ada) == [
        "INBOX", "Done", "Done/2030", *new_paths, "Drafts", "Junk", "Sent", "Trash", "Work",
        "Work/x", "work%", "work%/y", "work.z", "workshop",
    ]  # fmt: skip
    entries = await load_journal_entries(ada.environment, ada.user.id, last)
    assert [(kind, len(mailbox_ids)) for kind, mailbox_ids in entries] == [
        (EventType.MAILBOX_CREATED, 2),
        (EventType.MAILBOX_RENAMED, 3),
    ]


async def test_renamed_mailbox_keeps_special_use_and_messages(ada: GraphQLClient) -> None:
    await append_unread_messages(ada, "Sent", "one")
    answer = await rename_mailbox(ada, {"specialUse": "SENT"}, "Gesendet")
    assert answer["errors"] == []
    mailbox = await ada.load_mailbox("Gesendet")
    assert (mailbox.special_use, mailbox.message_count) == ("SENT", 1)


async def test_forbidden_rename_is_refused(ada: GraphQLClient) -> None:
    await create_mailboxes(ada, "A/B/C")
    await create_mailboxes(ada, "Secret", hidden=True)
    cases: list[tuple[str, str, str, list[str]]] = [
        ("INBOX", "Eingang", "FORBIDDEN_OPERATION", ["mailbox"]),
        ("Secret", "Open", "FORBIDDEN_OPERATION", ["mailbox"]),
        ("A", "A/B/D", "FORBIDDEN_OPERATION", ["newPath"]),
        ("A", "Sent", "CONFLICT", ["newPath"]),
        ("A", "inbox", "CONFLICT", ["newPath"]),
        ("A", "A/B", "FORBIDDEN_OPERATION", ["newPath"]),
        ("A", "X//Y", "VALIDATION", ["newPath"]),
        ("A", "/".join("x" * 127), "VALIDATION", ["newPath"]),
        ("Nowhere", "X", "NOT_FOUND", ["mailbox"]),
    ]
    for case in each_case(cases):
        with case as (mailbox, new_path, code, path):
            before = await list_mailbox_paths(ada, all=True)
            answer = await rename_mailbox(ada, mailbox, new_path)
            assert [(e["code"], e["path"]) for e in answer["errors"]] == [(code, path)]
            assert await list_mailbox_paths(ada, all=True) == before


async def test_rename_to_other_case_works_and_to_same_name_changes_nothing(
    ada: GraphQLClient,
) -> None:
    await create_mailboxes(ada, "work/x")
    assert (await rename_mailbox(ada, "work", "Work"))["errors"] == []
    assert await list_mailbox_paths(ada) == [
        "INBOX",
        "Drafts",
        "Junk",
        "Sent",
        "Trash",
        "Work",
        "Work/x",
    ]
    last = await load_stream_position(ada.environment, ada.user.id)
    assert [
        mailbox["path"] for mailbox in (await rename_mailbox(ada, "Work", "/Work/"))["mailboxes"]
    ] == ["Work"]
    assert await load_stream_position(ada.environment, ada.user.id) == last


async def test_deleted_mailbox_archives_its_messages(
    ada: GraphQLClient, environment: Environment
) -> None:
    await create_mailboxes(ada, "A/B")
    await append_unread_messages(ada, "A", "one", "two")
    await append_unread_messages(ada, "A/B", "three")
    await deliver_to(ada, "stays")
    last = await load_stream_position(environment, ada.user.id)
    answer = await delete_mailboxes(ada, "A", recursive=True)
    assert (len(answer["deletedIds"]), answer["errors"]) == (2, [])
    assert await list_mailbox_paths(ada) == DEFAULT_MAILBOXES
    sql = """SELECT subject, deleted_from, mailbox_id FROM messages
        WHERE deleted_at IS NOT NULL AND purge_at IS NOT NULL ORDER BY subject"""
    assert await select_rows(environment, sql) == [
        ("one", "A", None),
        ("three", "A/B", None),
        ("two", "A", None),
    ]
    kinds = [kind for kind, _ in await load_journal_entries(environment, ada.user.id, last)]
    assert kinds == [EventType.MESSAGE_DELETED, EventType.MAILBOX_DELETED]
    (counts,) = await select_rows(environment, "SELECT message_count, used FROM users")
    assert counts == (1, (await ada.load_mailbox()).size)


async def test_forbidden_mailbox_delete_is_refused(ada: GraphQLClient) -> None:
    await create_mailboxes(ada, "A/B", "Free", "Keep")
    await create_mailboxes(ada, "Keep/Old", specialUse="ARCHIVE")
    await create_mailboxes(ada, "Secret", hidden=True)
    await append_unread_messages(ada, "A/B", "one")
    cases: list[tuple[list[str], dict[str, Any], str, int | None]] = [
        (["INBOX"], {}, "FORBIDDEN_OPERATION", 0),
        (["Free", "Trash"], {}, "FORBIDDEN_OPERATION", 1),
        (["Secret"], {}, "FORBIDDEN_OPERATION", 0),
        (["A"], {}, "CONFLICT", 0),
        (["A", "A/B"], {"requireEmpty": True}, "CONFLICT", 1),
        (["Keep"], {"recursive": True}, "FORBIDDEN_OPERATION", 0),
        (["Free", "Nowhere"], {}, "NOT_FOUND", 1),
        ([], {}, "VALIDATION", None),
    ]
    for case in each_case(cases):
        with case as (mailbox_paths, extra, code, index):
            before = await list_mailbox_paths(ada, all=True)
            (error,) = (await delete_mailboxes(ada, *mailbox_paths, **extra))["errors"]
            assert (error["code"], field_path(error), item_index(error)) == (
                code,
                ["mailboxes"],
                index,
            )
            assert await list_mailbox_paths(ada, all=True) == before


async def test_delete_accepts_submailboxes_in_the_same_request(ada: GraphQLClient) -> None:
    await create_mailboxes(ada, "A/B/C")
    answer = await delete_mailboxes(ada, "A", "A/B", "A/B/C", "A", requireEmpty=True)
    assert (len(answer["deletedIds"]), answer["errors"]) == (3, [])


async def test_uid_validity_is_never_reused(ada: GraphQLClient, clock: ManualClock) -> None:
    used_values = set()
    for seconds in (0, 0, 0, 5, 0):
        clock.tick(seconds=seconds)
        await create_mailboxes(ada, "A")
        used_values.add((await ada.load_mailbox("A")).uid_validity)
        await delete_mailboxes(ada, "A")
    assert len(used_values) == 5
    clock.tick(days=-1)
    await create_mailboxes(ada, "A")
    assert (await ada.load_mailbox("A")).uid_validity > max(used_values)


async def test_uids_restart_in_recreated_mailbox(ada: GraphQLClient) -> None:
    await create_mailboxes(ada, "A")
    await append_unread_messages(ada, "A", "one")
    await delete_mailboxes(ada, "A")
    await create_mailboxes(ada, "A")
    mailbox = await ada.load_mailbox("A")
    assert (mailbox.uid_next, mailbox.message_count, mailbox.size) == (1, 0, 0)


async def test_mailboxes_are_listed_inbox_first_in_tree_order(ada: GraphQLClient) -> None:
    await create_mailboxes(ada, "A", "A-b", "A/b", "Inbox/z", "a", "B")
    assert await list_mailbox_paths(ada) == [
        "INBOX", "INBOX/z", "A", "A/b", "A-b", "B", "Drafts", "Junk", "Sent", "Trash", "a",
    ]  # fmt: skip


async def test_hidden_mailboxes_are_listed_on_request(ada: GraphQLClient) -> None:
    await create_mailboxes(ada, "Secret", hidden=True)
    assert "Secret" not in await list_mailbox_paths(ada)
    assert "Secret" in await list_mailbox_paths(ada, all=True)
    document = '{ mailbox(by: {path: "Secret"}) { hidden parent { path } } }'
    assert await ada(document) == {"mailbox": {"hidden": True, "parent": None}}


async def test_mailbox_with_missing_parent_is_readable(
    ada: GraphQLClient, environment: Environment
) -> None:
    await create_mailboxes(ada, "A/B")
    async with environment.write_session() as session:
        await session.exec(update(Mailbox).where(Mailbox.path == "A").values(path="Z"))  # type: ignore[arg-type]
    document = '{ mailbox(by: {path: "A/B"}) { name parent { path } } }'
    assert await ada(document) == {"mailbox": {"name": "B", "parent": None}}


async def test_mailbox_of_another_user_is_null(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient
) -> None:
    mailbox_id = global_ids.encode("Mailbox", (await ada.load_mailbox()).id)
    document = "query ($id: ID!, $user: UserRef) { mailbox(by: {id: $id}, user: $user) { path } }"
    assert await ada(document, id=mailbox_id) == {"mailbox": {"path": "INBOX"}}
    assert await bob(document, id=mailbox_id) == {"mailbox": None}
    assert await bob(document, id=mailbox_id, user={"username": "ada"}) == {"mailbox": None}
    assert (await rename_mailbox(bob, {"id": mailbox_id}, "Mine"))["errors"][0][
        "code"
    ] == "NOT_FOUND"
    arguments = {"mailboxes": [{"id": mailbox_id}]}
    assert (await bob(MAILBOX_DELETE, input=arguments))["mailboxDelete"]["errors"][0][
        "code"
    ] == "NOT_FOUND"
    assert await root(document, id=mailbox_id, user={"username": "bob"}) == {"mailbox": None}


async def test_malformed_mailbox_id_is_refused(ada: GraphQLClient) -> None:
    answer = await ada.execute('{ mailbox(by: {id: "box_nonsense"}) { path } }')
    assert answer["errors"][0]["extensions"] == {"code": "BAD_ID"}
    answer = await rename_mailbox(ada, {"id": "box_nonsense"}, "A")
    assert [(e["path"], e["constraint"]) for e in answer["errors"]] == [(["mailbox"], "ID")]


async def test_retention_out_of_range_is_refused(ada: GraphQLClient) -> None:
    cases: list[str] = ["PT0S", "PT0.5S", "P9999Y99999M99999W999999D"]
    for case in each_case(cases):
        with case as retention:
            document = """mutation ($life: Duration) { mailboxCreate(
        input: {paths: ["Kept"], retention: $life}) { errors { code path } } }"""
            (error,) = (await ada(document, life=retention))["mailboxCreate"]["errors"]
            assert error == {"code": "VALIDATION", "path": ["retention"]}
