"""Folders: making, renaming, deleting and listing them."""

import asyncio
import hashlib
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import update

from graph.types import global_ids
from mail.mailboxes import paths
from models.errors import Conflict, LimitReached
from models.events.journal import ChangeKind
from models.mailboxes.tables import Mailbox
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import rename as mailbox_rename
from resolvers.mailboxes.loaders import MailboxSelector, NewMailboxes
from resolvers.mailboxes.rename import MailboxRename
from tests.conftest import Client, Clock, context, make_key, receive
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
from tests.support.stores.counter_check import journal, reached, rows

pytestmark = pytest.mark.usefixtures("counted")


# making


async def test_a_new_folder_is_listed_and_those_above_it_are_made(ada: Client) -> None:
    last = await reached(ada.world, ada.user.id)
    made, errors = await create_mailboxes(
        ada, "/Clients/Ünal/2030/", hidden=False, retention="P30D", subscribe=False
    )
    assert errors == []
    assert [{k: v for k, v in box.items() if k != "id"} for box in made] == [
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
    assert (await ada.box("Clients")).subscribed
    ((kind, keys),) = await journal(ada.world, ada.user.id, last)
    assert (kind, len(keys)) == (ChangeKind.MAILBOX_CREATED, 3)


async def test_several_are_made_together_or_none(ada: Client) -> None:
    made, errors = await create_mailboxes(ada, "A/B", "A", "C")
    assert ([box["path"] for box in made], errors) == (["A/B", "A", "C"], [])
    made, (error,) = await create_mailboxes(ada, "D", "A/B")
    assert (made, error["code"], error["path"], error["index"]) == ([], "CONFLICT", ["paths"], 1)
    _, (error,) = await create_mailboxes(ada, "D", "D")
    assert (error["code"], error["index"]) == ("CONFLICT", 1)
    assert "D" not in await list_mailbox_paths(ada)


@pytest.mark.parametrize(
    "wrong",
    [
        "", "/", "//", "//A", "A//", "A//B", "A/ /B", " ", "A/\n", "A\x01B", "\x7f",
        "x" * 513, "A/" * 128 + "A",
    ],
)  # fmt: skip
async def test_a_wrong_path_is_marked_where_it_stands(ada: Client, wrong: str) -> None:
    made, (error,) = await create_mailboxes(ada, "Good", wrong)
    assert made == []
    assert (error["path"], error["index"], error["constraint"]) == (["paths"], 1, "pattern")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("/A/", "A"), ("A/x" + "x" * 511, "A/x" + "x" * 511), ("A." * 40, "A." * 40),
        ("a\u0308", "ä"), ("inbox/Sub", "INBOX/Sub"), ("InBoX/Sub", "INBOX/Sub"),
        ("A/inbox", "A/inbox"), ("a%b*c&d\\", "a%b*c&d\\"), ("A/" * 127 + "A", "A/" * 127 + "A"),
    ],
)  # fmt: skip
async def test_a_path_has_one_spelling(ada: Client, given: str, kept: str) -> None:
    made, errors = await create_mailboxes(ada, given)
    assert ([box["path"] for box in made], errors) == ([kept], [])
    document = "query ($path: String!) { mailbox(by: {path: $path}) { path } }"
    assert await ada(document, path=given) == {"mailbox": {"path": kept}}


async def test_a_path_may_be_as_long_as_the_limits_say(ada: Client) -> None:
    levels = [hashlib.shake_256(bytes([nth])).hexdigest(256) for nth in range(paths.MAX_LEVELS)]
    assert {len(level) for level in levels} == {paths.MAX_LEVEL_LENGTH}
    path = "/".join(levels)
    made, errors = await create_mailboxes(ada, path)
    assert ([box["path"] for box in made], errors) == ([path], [])
    (error,) = (await create_mailboxes(ada, path))[1]
    assert error["code"] == "CONFLICT"


async def test_inbox_is_one_however_it_is_written(ada: Client) -> None:
    for written in ("INBOX", "inbox", "/Inbox/"):
        _, (error,) = await create_mailboxes(ada, written)
        assert (error["code"], error["index"]) == ("CONFLICT", 0)
    assert (await create_mailboxes(ada, "drafts"))[1] == []  # others differ in case


async def test_nothing_to_make_is_refused(ada: Client) -> None:
    _, (error,) = await create_mailboxes(ada)
    assert (error["path"], error["constraint"]) == (["paths"], "required")
    _, (error,) = await create_mailboxes(ada, "A", "B", specialUse="ARCHIVE")
    assert (error["path"], error["constraint"]) == (["specialUse"], "exclusive")


async def test_a_role_has_one_folder(ada: Client, bob: Client) -> None:
    made, errors = await create_mailboxes(ada, "Old", specialUse="ARCHIVE")
    assert (made[0]["specialUse"], errors) == ("ARCHIVE", [])
    for role in ("ARCHIVE", "SENT", "INBOX"):
        made, (error,) = await create_mailboxes(ada, "Other", specialUse=role)
        assert (made, error["code"], error["path"]) == ([], "CONFLICT", ["specialUse"])
    assert (await create_mailboxes(bob, "Old", specialUse="ARCHIVE"))[1] == []
    assert "Other" not in await list_mailbox_paths(ada)


async def test_the_number_of_folders_has_an_exact_limit(ada: Client) -> None:
    ctx = context_with_options(ada, max_mailboxes=10)
    await mailbox_loaders.create_mailboxes(ctx, NewMailboxes(["A/B/C", "D"]))
    with pytest.raises(LimitReached) as full:
        await mailbox_loaders.create_mailboxes(ctx, NewMailboxes(["E/F"]))
    assert (full.value.limit, full.value.used, full.value.path) == (10, 9, ["paths"])
    await mailbox_loaders.create_mailboxes(ctx, NewMailboxes(["E"]))
    with pytest.raises(LimitReached):
        await mailbox_loaders.create_mailboxes(ctx, NewMailboxes(["F"]))
    with pytest.raises(LimitReached) as full:
        await mailbox_rename.rename_mailbox(ctx, MailboxRename(MailboxSelector(path="E"), "F/E"))
    assert full.value.path == ["newPath"]
    await mailbox_rename.rename_mailbox(ctx, MailboxRename(MailboxSelector(path="E"), "A/E"))


async def test_a_dry_run_and_a_repeated_call(ada: Client) -> None:
    (tried,), errors = await create_mailboxes(ada, "A", options={"validateOnly": True})
    assert (tried["path"], errors) == ("A", [])
    first, _ = await create_mailboxes(ada, "A", options={"idempotencyKey": "k"})
    again, errors = await create_mailboxes(ada, "A", options={"idempotencyKey": "k"})
    assert (first, errors) == (again, [])
    assert len(await list_mailbox_paths(ada)) == 6


async def test_two_calls_at_once_with_one_key_have_one_effect(ada: Client) -> None:
    given = {"paths": ["A"], "options": {"idempotencyKey": "k"}}
    both = await asyncio.gather(*(ada(MAILBOX_CREATE, input=given) for _ in range(2)))
    answers = [answer["mailboxCreate"] for answer in both]
    assert [answer["errors"] for answer in answers] == [[], []]
    assert sorted(answer["replayed"] for answer in answers) == [False, True]
    other = (await ada(MAILBOX_CREATE, input={**given, "paths": ["B"]}))["mailboxCreate"]
    assert [e["path"] for e in other["errors"]] == [["options", "idempotencyKey"]]


async def test_units_together_are_one(ada: Client) -> None:
    ctx = context(ada)
    last = await reached(ada.world, ada.user.id)
    async with ctx.combined_transaction(commit=False):
        await mailbox_loaders.create_mailboxes(ctx, NewMailboxes(["A"]))
        with pytest.raises(Conflict):  # a savepoint: the unit around it goes on
            await mailbox_loaders.create_mailboxes(ctx, NewMailboxes(["B", "A"]))
        seen = await mailbox_loaders.load_all_of_user(ctx, ada.user.id, {"path"})
        assert [row.path for row in seen][:2] == ["INBOX", "A"]
        assert ctx.committed_position == {ada.user.id: last + 1}
    assert await list_mailbox_paths(ada) == DEFAULT_MAILBOXES


async def test_writing_needs_its_scope(ada: Client) -> None:
    secret = await make_key(
        ada.world, "reader", user_id=ada.user.id, role=Role.USER, scopes=[Scope.MAIL_READ]
    )
    reader = replace(ada, secret=secret)
    assert await list_mailbox_paths(reader) == DEFAULT_MAILBOXES
    made, (error,) = await create_mailboxes(reader, "A")
    assert (made, error["__typename"], error["code"]) == ([], "ForbiddenError", "FORBIDDEN")


# renaming


async def test_what_is_below_moves_along_and_nothing_else(ada: Client) -> None:
    await create_mailboxes(ada, "work", "work/a_b/c", "Work/x", "work%/y", "workshop", "work.z")
    before = {box: (await ada.box(box)).id for box in ("work", "work/a_b", "work/a_b/c")}
    last = await reached(ada.world, ada.user.id)
    answer = await rename_mailbox(ada, "work", "Done/2030/Job")
    assert answer["errors"] == []
    moved = ["Done/2030/Job", "Done/2030/Job/a_b", "Done/2030/Job/a_b/c"]
    assert [box["path"] for box in answer["mailboxes"]] == moved
    assert [(await ada.box(path)).id for path in moved] == list(before.values())
    assert await list_mailbox_paths(ada) == [
        "INBOX", "Done", "Done/2030", *moved, "Drafts", "Junk", "Sent", "Trash", "Work", "Work/x",
        "work%", "work%/y", "work.z", "workshop",
    ]  # fmt: skip
    kinds = await journal(ada.world, ada.user.id, last)
    assert [(kind, len(keys)) for kind, keys in kinds] == [
        (ChangeKind.MAILBOX_CREATED, 2),
        (ChangeKind.MAILBOX_RENAMED, 3),
    ]


async def test_a_special_folder_may_move_and_keeps_its_role_and_mail(ada: Client) -> None:
    await append_unread_messages(ada, "Sent", "one")
    answer = await rename_mailbox(ada, {"specialUse": "SENT"}, "Gesendet")
    assert answer["errors"] == []
    box = await ada.box("Gesendet")
    assert (box.special_use, box.total) == ("SENT", 1)


@pytest.mark.parametrize(
    ("mailbox", "to", "code", "path"),
    [
        ("INBOX", "Eingang", "FORBIDDEN_OPERATION", ["mailbox"]),
        ("Secret", "Open", "FORBIDDEN_OPERATION", ["mailbox"]),
        ("A", "A/B/D", "FORBIDDEN_OPERATION", ["newPath"]),
        ("A", "Sent", "CONFLICT", ["newPath"]),
        ("A", "inbox", "CONFLICT", ["newPath"]),
        ("A", "A/B", "FORBIDDEN_OPERATION", ["newPath"]),
        ("A", "X//Y", "VALIDATION", ["newPath"]),
        ("A", "/".join("x" * 127), "VALIDATION", ["newPath"]),
        ("Nowhere", "X", "NOT_FOUND", ["mailbox"]),
    ],
)
async def test_where_a_folder_cannot_go(
    ada: Client, mailbox: str, to: str, code: str, path: list[str]
) -> None:
    await create_mailboxes(ada, "A/B/C")
    await create_mailboxes(ada, "Secret", hidden=True)
    before = await list_mailbox_paths(ada, all=True)
    answer = await rename_mailbox(ada, mailbox, to)
    assert [(e["code"], e["path"]) for e in answer["errors"]] == [(code, path)]
    assert await list_mailbox_paths(ada, all=True) == before


async def test_a_new_case_is_a_new_name_and_the_old_one_changes_nothing(ada: Client) -> None:
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
    last = await reached(ada.world, ada.user.id)
    assert [box["path"] for box in (await rename_mailbox(ada, "Work", "/Work/"))["mailboxes"]] == [
        "Work"
    ]
    assert await reached(ada.world, ada.user.id) == last


# deleting


async def test_what_is_deleted_goes_to_the_archive(ada: Client, world: Environment) -> None:
    await create_mailboxes(ada, "A/B")
    await append_unread_messages(ada, "A", "one", "two")
    await append_unread_messages(ada, "A/B", "three")
    await receive(ada, "stays")
    last = await reached(world, ada.user.id)
    answer = await delete_mailboxes(ada, "A", recursive=True)
    assert (len(answer["deletedIds"]), answer["errors"]) == (2, [])
    assert await list_mailbox_paths(ada) == DEFAULT_MAILBOXES
    sql = """SELECT subject, archived_from, mailbox_id FROM messages
        WHERE archived_at IS NOT NULL AND purge_at IS NOT NULL ORDER BY subject"""
    assert await rows(world, sql) == [
        ("one", "A", None),
        ("three", "A/B", None),
        ("two", "A", None),
    ]
    kinds = [kind for kind, _ in await journal(world, ada.user.id, last)]
    assert kinds == [ChangeKind.MESSAGE_ARCHIVED, ChangeKind.MAILBOX_DELETED]
    (counts,) = await rows(world, "SELECT message_count, used FROM users")
    assert counts == (1, (await ada.box()).size)


@pytest.mark.parametrize(
    ("asked", "more", "code", "index"),
    [
        (["INBOX"], {}, "FORBIDDEN_OPERATION", 0),
        (["Free", "Trash"], {}, "FORBIDDEN_OPERATION", 1),
        (["Secret"], {}, "FORBIDDEN_OPERATION", 0),
        (["A"], {}, "CONFLICT", 0),
        (["A", "A/B"], {"requireEmpty": True}, "CONFLICT", 1),
        (["Keep"], {"recursive": True}, "FORBIDDEN_OPERATION", 0),
        (["Free", "Nowhere"], {}, "NOT_FOUND", 1),
        ([], {}, "VALIDATION", None),
    ],
)
async def test_what_stays(
    ada: Client, asked: list[str], more: dict[str, Any], code: str, index: int | None
) -> None:
    await create_mailboxes(ada, "A/B", "Free", "Keep")
    await create_mailboxes(ada, "Keep/Old", specialUse="ARCHIVE")
    await create_mailboxes(ada, "Secret", hidden=True)
    await append_unread_messages(ada, "A/B", "one")
    before = await list_mailbox_paths(ada, all=True)
    (error,) = (await delete_mailboxes(ada, *asked, **more))["errors"]
    assert (error["code"], error["path"], error["index"]) == (code, ["mailboxes"], index)
    assert await list_mailbox_paths(ada, all=True) == before


async def test_those_below_may_be_named_themselves(ada: Client) -> None:
    await create_mailboxes(ada, "A/B/C")
    answer = await delete_mailboxes(ada, "A", "A/B", "A/B/C", "A", requireEmpty=True)
    assert (len(answer["deletedIds"]), answer["errors"]) == (3, [])


async def test_a_number_of_validity_never_comes_again(ada: Client, clock: Clock) -> None:
    seen = set()
    for tick in (0, 0, 0, 5, 0):
        clock.tick(seconds=tick)
        await create_mailboxes(ada, "A")
        seen.add((await ada.box("A")).uid_validity)
        await delete_mailboxes(ada, "A")
    assert len(seen) == 5
    clock.tick(days=-1)
    await create_mailboxes(ada, "A")
    assert (await ada.box("A")).uid_validity > max(seen)


async def test_uids_begin_anew_in_a_new_folder(ada: Client) -> None:
    await create_mailboxes(ada, "A")
    await append_unread_messages(ada, "A", "one")
    await delete_mailboxes(ada, "A")
    await create_mailboxes(ada, "A")
    box = await ada.box("A")
    assert (box.uid_next, box.total, box.size) == (1, 0, 0)


# reading


async def test_inbox_comes_first_and_the_tree_stays_together(ada: Client) -> None:
    await create_mailboxes(ada, "A", "A-b", "A/b", "Inbox/z", "a", "B")
    assert await list_mailbox_paths(ada) == [
        "INBOX", "INBOX/z", "A", "A/b", "A-b", "B", "Drafts", "Junk", "Sent", "Trash", "a",
    ]  # fmt: skip


async def test_hidden_folders_are_shown_when_asked_for(ada: Client) -> None:
    await create_mailboxes(ada, "Secret", hidden=True)
    assert "Secret" not in await list_mailbox_paths(ada)
    assert "Secret" in await list_mailbox_paths(ada, all=True)
    document = '{ mailbox(by: {path: "Secret"}) { hidden parent { path } } }'
    assert await ada(document) == {"mailbox": {"hidden": True, "parent": None}}


async def test_a_folder_whose_parent_is_missing_can_be_read(
    ada: Client, world: Environment
) -> None:
    await create_mailboxes(ada, "A/B")
    async with world.write_session() as session:
        await session.exec(update(Mailbox).where(Mailbox.path == "A").values(path="Z"))  # type: ignore[arg-type]
    document = '{ mailbox(by: {path: "A/B"}) { name parent { path } } }'
    assert await ada(document) == {"mailbox": {"name": "B", "parent": None}}


async def test_another_users_mailbox_looks_like_none(
    root: Client, ada: Client, bob: Client
) -> None:
    key = global_ids.encode("Mailbox", (await ada.box()).id)
    document = "query ($id: ID!, $user: UserRef) { mailbox(by: {id: $id}, user: $user) { path } }"
    assert await ada(document, id=key) == {"mailbox": {"path": "INBOX"}}
    assert await bob(document, id=key) == {"mailbox": None}
    assert await bob(document, id=key, user={"username": "ada"}) == {"mailbox": None}
    assert (await rename_mailbox(bob, {"id": key}, "Mine"))["errors"][0]["code"] == "NOT_FOUND"
    given = {"mailboxes": [{"id": key}]}
    assert (await bob(MAILBOX_DELETE, input=given))["mailboxDelete"]["errors"][0][
        "code"
    ] == "NOT_FOUND"
    assert await root(document, id=key, user={"username": "bob"}) == {"mailbox": None}


async def test_a_made_up_id_is_refused_with_its_code(ada: Client) -> None:
    answer = await ada.raw('{ mailbox(by: {id: "box_nonsense"}) { path } }')
    assert answer["errors"][0]["extensions"] == {"code": "BAD_ID"}
    answer = await rename_mailbox(ada, {"id": "box_nonsense"}, "A")
    assert [(e["path"], e["constraint"]) for e in answer["errors"]] == [(["mailbox"], "id")]


@pytest.mark.parametrize("life", ["PT0.5S", "P9999Y99999M99999W999999D"])
async def test_a_life_nobody_could_live_is_refused(ada: Client, life: str) -> None:
    document = """mutation ($life: Duration) { mailboxCreate(
        input: {paths: ["Kept"], retention: $life}) { errors { code path } } }"""
    (error,) = (await ada(document, life=life))["mailboxCreate"]["errors"]
    assert error == {"code": "VALIDATION", "path": ["retention"]}
