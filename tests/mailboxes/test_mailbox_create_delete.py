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
from models.runtime.environment import World
from models.users.roles import Role, Scope
from resolvers.context import Context, Viewer
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import rename as mailbox_rename
from resolvers.mailboxes.loaders import Named, NewMailboxes
from resolvers.mailboxes.rename import Renamed
from resolvers.messages import upload
from resolvers.messages.upload import NewMessage
from tests.conftest import Client, Clock, context, make_key, raw_message, receive
from tests.support.stores.counter_check import journal, reached, rows

ERRORS = "errors { __typename code path index ... on ValidationError { constraint } }"
CREATE = f"""
mutation ($input: MailboxCreateInput!) {{
  mailboxCreate(input: $input) {{
    mailboxes {{ id path name specialUse subscribed hidden retention parent {{ path }} }}
    journalCursor replayed {ERRORS}
  }}
}}
"""
RENAME = f"""
mutation ($mailbox: MailboxRef!, $to: String!) {{
  mailboxRename(input: {{mailbox: $mailbox, newPath: $to}}) {{ mailboxes {{ path }} {ERRORS} }}
}}
"""
DELETE = f"""
mutation ($input: MailboxDeleteInput!) {{
  mailboxDelete(input: $input) {{ deletedIds {ERRORS} }}
}}
"""
PATHS = (
    "query ($all: Boolean! = false) { viewer { user { mailboxes(showHidden: $all) { path } } } }"
)
FIRST = ["INBOX", "Drafts", "Junk", "Sent", "Trash"]
pytestmark = pytest.mark.usefixtures("counted")


async def create(client: Client, *paths: str, **more: Any) -> tuple[list[Any], list[Any]]:
    answer = (await client(CREATE, input={"paths": list(paths), **more}))["mailboxCreate"]
    return answer["mailboxes"], answer["errors"]


async def rename(client: Client, mailbox: str | dict[str, Any], to: str) -> Any:
    ref = {"path": mailbox} if isinstance(mailbox, str) else mailbox
    return (await client(RENAME, mailbox=ref, to=to))["mailboxRename"]


async def delete(client: Client, *paths: str, **more: Any) -> Any:
    refs = [{"path": path} for path in paths]
    return (await client(DELETE, input={"mailboxes": refs, **more}))["mailboxDelete"]


async def shown(client: Client, **more: bool) -> list[str]:
    user = (await client(PATHS, **more))["viewer"]["user"]
    return [box["path"] for box in user["mailboxes"]]


async def put(client: Client, path: str, *subjects: str) -> None:
    """Unread messages in a folder."""
    for subject in subjects:
        new = NewMessage(Named(path=path), raw_message(subject).decode(), seen=False)
        assert await upload.store(context(client), new)


def worlds(client: Client, **options: Any) -> Context:
    """An operation in the same world with other options."""
    world = replace(client.world, options=replace(client.world.options, **options))
    return Context(world, Viewer(client.user.id, client.user.role, context(client).viewer.scopes))


# making


async def test_a_new_folder_is_listed_and_those_above_it_are_made(ada: Client) -> None:
    last = await reached(ada.world, ada.user.id)
    made, errors = await create(
        ada, "/Clients/Ünal/2030/", hidden=False, retention="P30D", subscribe=False
    )
    assert errors == []
    assert [{k: v for k, v in box.items() if k != "id"} for box in made] == [
        {
            "path": "Clients/Ünal/2030", "name": "2030", "specialUse": None, "subscribed": False,
            "hidden": False, "retention": "P30D", "parent": {"path": "Clients/Ünal"},
        }
    ]  # fmt: skip
    assert await shown(ada) == ["INBOX", "Clients", "Clients/Ünal", "Clients/Ünal/2030", *FIRST[1:]]
    assert (await ada.box("Clients")).subscribed
    ((kind, keys),) = await journal(ada.world, ada.user.id, last)
    assert (kind, len(keys)) == (ChangeKind.MAILBOX_CREATED, 3)


async def test_several_are_made_together_or_none(ada: Client) -> None:
    made, errors = await create(ada, "A/B", "A", "C")
    assert ([box["path"] for box in made], errors) == (["A/B", "A", "C"], [])
    made, (error,) = await create(ada, "D", "A/B")
    assert (made, error["code"], error["path"], error["index"]) == ([], "CONFLICT", ["paths"], 1)
    _, (error,) = await create(ada, "D", "D")
    assert (error["code"], error["index"]) == ("CONFLICT", 1)
    assert "D" not in await shown(ada)


@pytest.mark.parametrize(
    "wrong",
    [
        "", "/", "//", "//A", "A//", "A//B", "A/ /B", " ", "A/\n", "A\x01B", "\x7f",
        "x" * 513, "A/" * 128 + "A",
    ],
)  # fmt: skip
async def test_a_wrong_path_is_marked_where_it_stands(ada: Client, wrong: str) -> None:
    made, (error,) = await create(ada, "Good", wrong)
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
    made, errors = await create(ada, given)
    assert ([box["path"] for box in made], errors) == ([kept], [])
    document = "query ($path: String!) { mailbox(by: {path: $path}) { path } }"
    assert await ada(document, path=given) == {"mailbox": {"path": kept}}


async def test_a_path_may_be_as_long_as_the_limits_say(ada: Client) -> None:
    levels = [hashlib.shake_256(bytes([nth])).hexdigest(256) for nth in range(paths.LEVELS)]
    assert {len(level) for level in levels} == {paths.LONGEST}
    path = "/".join(levels)
    made, errors = await create(ada, path)
    assert ([box["path"] for box in made], errors) == ([path], [])
    (error,) = (await create(ada, path))[1]
    assert error["code"] == "CONFLICT"


async def test_inbox_is_one_however_it_is_written(ada: Client) -> None:
    for written in ("INBOX", "inbox", "/Inbox/"):
        _, (error,) = await create(ada, written)
        assert (error["code"], error["index"]) == ("CONFLICT", 0)
    assert (await create(ada, "drafts"))[1] == []  # others differ in case


async def test_nothing_to_make_is_refused(ada: Client) -> None:
    _, (error,) = await create(ada)
    assert (error["path"], error["constraint"]) == (["paths"], "required")
    _, (error,) = await create(ada, "A", "B", specialUse="ARCHIVE")
    assert (error["path"], error["constraint"]) == (["specialUse"], "exclusive")


async def test_a_role_has_one_folder(ada: Client, bob: Client) -> None:
    made, errors = await create(ada, "Old", specialUse="ARCHIVE")
    assert (made[0]["specialUse"], errors) == ("ARCHIVE", [])
    for role in ("ARCHIVE", "SENT", "INBOX"):
        made, (error,) = await create(ada, "Other", specialUse=role)
        assert (made, error["code"], error["path"]) == ([], "CONFLICT", ["specialUse"])
    assert (await create(bob, "Old", specialUse="ARCHIVE"))[1] == []
    assert "Other" not in await shown(ada)


async def test_the_number_of_folders_has_an_exact_limit(ada: Client) -> None:
    ctx = worlds(ada, max_mailboxes=10)
    await mailbox_loaders.create(ctx, NewMailboxes(["A/B/C", "D"]))
    with pytest.raises(LimitReached) as full:
        await mailbox_loaders.create(ctx, NewMailboxes(["E/F"]))
    assert (full.value.limit, full.value.used, full.value.path) == (10, 9, ["paths"])
    await mailbox_loaders.create(ctx, NewMailboxes(["E"]))
    with pytest.raises(LimitReached):
        await mailbox_loaders.create(ctx, NewMailboxes(["F"]))
    with pytest.raises(LimitReached) as full:
        await mailbox_rename.rename(ctx, Renamed(Named(path="E"), "F/E"))
    assert full.value.path == ["newPath"]
    await mailbox_rename.rename(ctx, Renamed(Named(path="E"), "A/E"))


async def test_a_dry_run_and_a_repeated_call(ada: Client) -> None:
    (tried,), errors = await create(ada, "A", options={"validateOnly": True})
    assert (tried["path"], errors) == ("A", [])
    first, _ = await create(ada, "A", options={"idempotencyKey": "k"})
    again, errors = await create(ada, "A", options={"idempotencyKey": "k"})
    assert (first, errors) == (again, [])
    assert len(await shown(ada)) == 6


async def test_two_calls_at_once_with_one_key_have_one_effect(ada: Client) -> None:
    given = {"paths": ["A"], "options": {"idempotencyKey": "k"}}
    both = await asyncio.gather(*(ada(CREATE, input=given) for _ in range(2)))
    answers = [answer["mailboxCreate"] for answer in both]
    assert [answer["errors"] for answer in answers] == [[], []]
    assert sorted(answer["replayed"] for answer in answers) == [False, True]
    other = (await ada(CREATE, input={**given, "paths": ["B"]}))["mailboxCreate"]
    assert [e["path"] for e in other["errors"]] == [["options", "idempotencyKey"]]


async def test_units_together_are_one(ada: Client) -> None:
    ctx = context(ada)
    last = await reached(ada.world, ada.user.id)
    async with ctx.together(keep=False):
        await mailbox_loaders.create(ctx, NewMailboxes(["A"]))
        with pytest.raises(Conflict):  # a savepoint: the unit around it goes on
            await mailbox_loaders.create(ctx, NewMailboxes(["B", "A"]))
        seen = await mailbox_loaders.all_of(ctx, ada.user.id, {"path"})
        assert [row.path for row in seen][:2] == ["INBOX", "A"]
        assert ctx.reached == {ada.user.id: last + 1}
    assert await shown(ada) == FIRST


async def test_writing_needs_its_scope(ada: Client) -> None:
    secret = await make_key(
        ada.world, "reader", user_id=ada.user.id, role=Role.USER, scopes=[Scope.MAIL_READ]
    )
    reader = replace(ada, secret=secret)
    assert await shown(reader) == FIRST
    made, (error,) = await create(reader, "A")
    assert (made, error["__typename"], error["code"]) == ([], "ForbiddenError", "FORBIDDEN")


# renaming


async def test_what_is_below_moves_along_and_nothing_else(ada: Client) -> None:
    await create(ada, "work", "work/a_b/c", "Work/x", "work%/y", "workshop", "work.z")
    before = {box: (await ada.box(box)).id for box in ("work", "work/a_b", "work/a_b/c")}
    last = await reached(ada.world, ada.user.id)
    answer = await rename(ada, "work", "Done/2030/Job")
    assert answer["errors"] == []
    moved = ["Done/2030/Job", "Done/2030/Job/a_b", "Done/2030/Job/a_b/c"]
    assert [box["path"] for box in answer["mailboxes"]] == moved
    assert [(await ada.box(path)).id for path in moved] == list(before.values())
    assert await shown(ada) == [
        "INBOX", "Done", "Done/2030", *moved, "Drafts", "Junk", "Sent", "Trash", "Work", "Work/x",
        "work%", "work%/y", "work.z", "workshop",
    ]  # fmt: skip
    kinds = await journal(ada.world, ada.user.id, last)
    assert [(kind, len(keys)) for kind, keys in kinds] == [
        (ChangeKind.MAILBOX_CREATED, 2),
        (ChangeKind.MAILBOX_RENAMED, 3),
    ]


async def test_a_special_folder_may_move_and_keeps_its_role_and_mail(ada: Client) -> None:
    await put(ada, "Sent", "one")
    answer = await rename(ada, {"specialUse": "SENT"}, "Gesendet")
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
    await create(ada, "A/B/C")
    await create(ada, "Secret", hidden=True)
    before = await shown(ada, all=True)
    answer = await rename(ada, mailbox, to)
    assert [(e["code"], e["path"]) for e in answer["errors"]] == [(code, path)]
    assert await shown(ada, all=True) == before


async def test_a_new_case_is_a_new_name_and_the_old_one_changes_nothing(ada: Client) -> None:
    await create(ada, "work/x")
    assert (await rename(ada, "work", "Work"))["errors"] == []
    assert await shown(ada) == ["INBOX", "Drafts", "Junk", "Sent", "Trash", "Work", "Work/x"]
    last = await reached(ada.world, ada.user.id)
    assert [box["path"] for box in (await rename(ada, "Work", "/Work/"))["mailboxes"]] == ["Work"]
    assert await reached(ada.world, ada.user.id) == last


# deleting


async def test_what_is_deleted_goes_to_the_archive(ada: Client, world: World) -> None:
    await create(ada, "A/B")
    await put(ada, "A", "one", "two")
    await put(ada, "A/B", "three")
    await receive(ada, "stays")
    last = await reached(world, ada.user.id)
    answer = await delete(ada, "A", recursive=True)
    assert (len(answer["deletedIds"]), answer["errors"]) == (2, [])
    assert await shown(ada) == FIRST
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
    await create(ada, "A/B", "Free", "Keep")
    await create(ada, "Keep/Old", specialUse="ARCHIVE")
    await create(ada, "Secret", hidden=True)
    await put(ada, "A/B", "one")
    before = await shown(ada, all=True)
    (error,) = (await delete(ada, *asked, **more))["errors"]
    assert (error["code"], error["path"], error["index"]) == (code, ["mailboxes"], index)
    assert await shown(ada, all=True) == before


async def test_those_below_may_be_named_themselves(ada: Client) -> None:
    await create(ada, "A/B/C")
    answer = await delete(ada, "A", "A/B", "A/B/C", "A", requireEmpty=True)
    assert (len(answer["deletedIds"]), answer["errors"]) == (3, [])


async def test_a_number_of_validity_never_comes_again(ada: Client, clock: Clock) -> None:
    seen = set()
    for tick in (0, 0, 0, 5, 0):
        clock.tick(seconds=tick)
        await create(ada, "A")
        seen.add((await ada.box("A")).uid_validity)
        await delete(ada, "A")
    assert len(seen) == 5
    clock.tick(days=-1)
    await create(ada, "A")
    assert (await ada.box("A")).uid_validity > max(seen)


async def test_uids_begin_anew_in_a_new_folder(ada: Client) -> None:
    await create(ada, "A")
    await put(ada, "A", "one")
    await delete(ada, "A")
    await create(ada, "A")
    box = await ada.box("A")
    assert (box.uid_next, box.total, box.size) == (1, 0, 0)


# reading


async def test_inbox_comes_first_and_the_tree_stays_together(ada: Client) -> None:
    await create(ada, "A", "A-b", "A/b", "Inbox/z", "a", "B")
    assert await shown(ada) == [
        "INBOX", "INBOX/z", "A", "A/b", "A-b", "B", "Drafts", "Junk", "Sent", "Trash", "a",
    ]  # fmt: skip


async def test_hidden_folders_are_shown_when_asked_for(ada: Client) -> None:
    await create(ada, "Secret", hidden=True)
    assert "Secret" not in await shown(ada)
    assert "Secret" in await shown(ada, all=True)
    document = '{ mailbox(by: {path: "Secret"}) { hidden parent { path } } }'
    assert await ada(document) == {"mailbox": {"hidden": True, "parent": None}}


async def test_a_folder_whose_parent_is_missing_can_be_read(ada: Client, world: World) -> None:
    await create(ada, "A/B")
    async with world.write() as session:
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
    assert (await rename(bob, {"id": key}, "Mine"))["errors"][0]["code"] == "NOT_FOUND"
    given = {"mailboxes": [{"id": key}]}
    assert (await bob(DELETE, input=given))["mailboxDelete"]["errors"][0]["code"] == "NOT_FOUND"
    assert await root(document, id=key, user={"username": "bob"}) == {"mailbox": None}


async def test_a_made_up_id_is_refused_with_its_code(ada: Client) -> None:
    answer = await ada.raw('{ mailbox(by: {id: "box_nonsense"}) { path } }')
    assert answer["errors"][0]["extensions"] == {"code": "BAD_ID"}
    answer = await rename(ada, {"id": "box_nonsense"}, "A")
    assert [(e["path"], e["constraint"]) for e in answer["errors"]] == [(["mailbox"], "id")]


@pytest.mark.parametrize("life", ["PT0.5S", "P9999Y99999M99999W999999D"])
async def test_a_life_nobody_could_live_is_refused(ada: Client, life: str) -> None:
    document = """mutation ($life: Duration) { mailboxCreate(
        input: {paths: ["Kept"], retention: $life}) { errors { code path } } }"""
    (error,) = (await ada(document, life=life))["mailboxCreate"]["errors"]
    assert error == {"code": "VALIDATION", "path": ["retention"]}
