"""Folders that are changed, subscribed to, moved by two at once, and those of other users."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from models.errors import LimitReached
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from resolvers.admin import tasks
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import rename as mailbox_rename
from resolvers.mailboxes import subscription_mutations
from resolvers.mailboxes import update as mailbox_update
from resolvers.mailboxes.loaders import MailboxSelector, NewMailboxes
from resolvers.mailboxes.rename import MailboxRename
from resolvers.mailboxes.update import MailboxUpdate
from tests.conftest import Client, Clock, context, make_client, receive
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.operations.mailbox_operations import (
    DEFAULT_MAILBOXES,
    append_unread_messages,
    context_with_options,
    create_mailboxes,
    delete_mailboxes,
    list_mailbox_paths,
    rename_mailbox,
    run_mailbox_mutation,
)
from tests.support.stores.counter_check import journal, reached, rows

pytestmark = pytest.mark.usefixtures("examined")


async def update(client: Client, *paths: str, apply: bool = False, **patch: Any) -> Any:
    selection = "mailboxes { path hidden subscribed retention specialUse } task { id kind total }"
    refs = [{"path": path} for path in paths]
    given: dict[str, Any] = {"mailboxes": refs, "set": patch, "applyRetention": apply}
    return await run_mailbox_mutation(client, "mailboxUpdate", selection, **given)


async def subscribed(client: Client) -> tuple[list[str], list[str]]:
    """Folders and paths without one."""
    document = "{ user { mailboxes(subscribed: true, showHidden: true) { path } subscribedPaths } }"
    user = (await client(document))["user"]
    return [box["path"] for box in user["mailboxes"]], user["subscribedPaths"]


# renaming


async def test_a_rename_costs_the_same_however_much_is_below(
    ada: Client, statements: list[str]
) -> None:
    async def cost(path: str, to: str) -> int:
        del statements[:]
        await mailbox_rename.rename_mailbox(
            context(ada), MailboxRename(MailboxSelector(path=path), to)
        )
        return len(statements)

    await create_mailboxes(ada, "A/B", "C")
    few = await cost("A", "X/A")
    await mailbox_loaders.create_mailboxes(
        context(ada), NewMailboxes([f"C/{n}/D" for n in range(60)])
    )
    assert await cost("C", "Y/C") == few


async def test_a_subtree_may_move_up_into_a_place_that_is_free(
    ada: Client, world: Environment
) -> None:
    await create_mailboxes(ada, "A/A/A/A", "A/A/B")
    sql = "UPDATE mailboxes SET path = 'Z' WHERE path = 'A'"  # as an import may leave it
    async with world.write_session() as session:
        await (await session.connection()).exec_driver_sql(sql)
    answer = await rename_mailbox(ada, "A/A", "A")
    assert (answer["errors"], [box["path"] for box in answer["mailboxes"]]) == (
        [],
        ["A", "A/A", "A/A/A", "A/B"],
    )


async def test_two_renames_at_once_end_in_one_tree(ada: Client) -> None:
    for nth in range(3):
        await create_mailboxes(ada, f"A{nth}/B/C", f"X{nth}")
        both = await asyncio.gather(
            rename_mailbox(ada, f"A{nth}", f"X{nth}/A"),
            rename_mailbox(ada, f"A{nth}/B", f"X{nth}/B"),
        )
        codes = [[error["code"] for error in answer["errors"]] for answer in both]
        there = [p for p in await list_mailbox_paths(ada) if p.startswith((f"A{nth}", f"X{nth}"))]
        if codes == [[], []]:  # what is below was first
            assert there == [f"X{nth}", f"X{nth}/A", f"X{nth}/B", f"X{nth}/B/C"]
        else:
            assert codes == [[], ["NOT_FOUND"]]
            assert there == [f"X{nth}", f"X{nth}/A", f"X{nth}/A/B", f"X{nth}/A/B/C"]


async def test_subscriptions_follow_unless_they_stay(ada: Client) -> None:
    await create_mailboxes(ada, "A/B", "A/C")
    await run_mailbox_mutation(ada, "mailboxUnsubscribe", paths=["A/C"])
    await run_mailbox_mutation(ada, "mailboxSubscribe", paths=["A/Gone", "X/C"])
    await rename_mailbox(ada, "A", "X")
    boxes, others = await subscribed(ada)
    assert (boxes, others) == ([*DEFAULT_MAILBOXES, "X", "X/B", "X/C"], ["X/Gone"])
    stay: dict[str, Any] = {"mailbox": {"path": "X"}, "newPath": "Y", "subscriptions": False}
    assert (await run_mailbox_mutation(ada, "mailboxRename", **stay))["errors"] == []
    boxes, others = await subscribed(ada)
    assert (boxes, others) == (DEFAULT_MAILBOXES, ["X", "X/B", "X/C", "X/Gone"])
    await rename_mailbox(ada, "Y", "X")
    assert (await subscribed(ada))[0] == [*DEFAULT_MAILBOXES, "X", "X/B", "X/C"]


# subscribing


async def test_a_path_is_subscribed_to_before_there_is_a_folder(ada: Client, bob: Client) -> None:
    last = await reached(ada.world, ada.user.id)
    answer = await run_mailbox_mutation(
        ada, "mailboxSubscribe", paths=["Later/On", "/inbox/", "Sent"]
    )
    assert [box["path"] for box in answer["mailboxes"]] == ["INBOX", "Sent"]
    assert await subscribed(ada) == (DEFAULT_MAILBOXES, ["Later/On"])
    assert await subscribed(bob) == (DEFAULT_MAILBOXES, [])
    assert await journal(ada.world, ada.user.id, last) == [(ChangeKind.USER_CHANGED, [ada.user.id])]
    await run_mailbox_mutation(ada, "mailboxUnsubscribe", paths=["Sent", "Nowhere"])
    made, _ = await create_mailboxes(ada, "Later/On", subscribe=False)
    assert made[0]["subscribed"] is True
    assert (await subscribed(ada))[1] == []


async def test_who_deletes_may_stay_subscribed(ada: Client) -> None:
    await create_mailboxes(ada, "A", "B")
    await delete_mailboxes(ada, "A")
    await delete_mailboxes(ada, "B", unsubscribe=False)
    assert await subscribed(ada) == (DEFAULT_MAILBOXES, ["B"])
    await create_mailboxes(ada, "A", "B", subscribe=False)
    assert (await subscribed(ada))[0] == ["INBOX", "B", *DEFAULT_MAILBOXES[1:]]


@pytest.mark.parametrize(
    "paths", [[], ["A//B"], ["x" * 513], ["A", "Tr\N{CYRILLIC SMALL LETTER A}sh"]]
)
async def test_what_is_no_path_is_not_subscribed_to(ada: Client, paths: list[str]) -> None:
    (error,) = (await run_mailbox_mutation(ada, "mailboxSubscribe", paths=paths))["errors"]
    assert (error["code"], error["path"]) == ("VALIDATION", ["paths"])
    assert await subscribed(ada) == (DEFAULT_MAILBOXES, [])


async def test_subscriptions_have_a_limit(ada: Client) -> None:
    ctx, many = context_with_options(ada, max_mailboxes=10), [f"A{n}" for n in range(11)]
    with pytest.raises(LimitReached) as full:
        await subscription_mutations.set_subscribed(ctx, many, is_subscribed=True)
    assert (full.value.limit, full.value.path) == (10, ["paths"])
    await subscription_mutations.set_subscribed(ctx, many[:10], is_subscribed=True)
    assert len((await subscribed(ada))[1]) == 10


# changing


async def test_folders_are_changed_together_or_not_at_all(ada: Client) -> None:
    await create_mailboxes(ada, "A", "B")
    last = await reached(ada.world, ada.user.id)
    answer = await update(ada, "A", "B", "A", hidden=True, retention="P7D", subscribed=False)
    changed = {"hidden": True, "retention": "P7D", "subscribed": False, "specialUse": None}
    assert answer["mailboxes"] == [{"path": path, **changed} for path in ("A", "B")]
    ((kind, ids),) = await journal(ada.world, ada.user.id, last)
    assert (kind, len(ids)) == (ChangeKind.MAILBOX_UPDATED, 2)
    last = await reached(ada.world, ada.user.id)
    assert (await update(ada, "A", hidden=True))["errors"] == []
    assert await reached(ada.world, ada.user.id) == last
    (error,) = (await update(ada, "A", "Nowhere", hidden=False))["errors"]
    assert (error["code"], error["index"]) == ("NOT_FOUND", 1)
    assert "A" not in await list_mailbox_paths(ada)


async def test_a_role_goes_from_one_folder_to_another_in_one_step(ada: Client) -> None:
    await create_mailboxes(ada, "A", "B")
    for path in ("A", "B"):
        answer = await update(ada, path, specialUse="ARCHIVE")
        assert [box["specialUse"] for box in answer["mailboxes"]] == ["ARCHIVE"]
    assert (await ada.box("A")).special_use is None
    last = await reached(ada.world, ada.user.id)
    assert (await update(ada, "B", specialUse=None))["errors"] == []
    assert (await update(ada, "A", specialUse="SENT"))["errors"] == []
    assert (await ada.box("Sent")).special_use is None
    kinds = [len(ids) for _, ids in await journal(ada.world, ada.user.id, last)]
    assert kinds == [1, 2]


@pytest.mark.parametrize(
    ("paths", "patch", "code", "path"),
    [
        (["INBOX"], {"hidden": True}, "FORBIDDEN_OPERATION", ["set", "hidden"]),
        (["INBOX"], {"specialUse": "ARCHIVE"}, "FORBIDDEN_OPERATION", ["set", "specialUse"]),
        (["A"], {"specialUse": "INBOX"}, "FORBIDDEN_OPERATION", ["set", "specialUse"]),
        (["Sent"], {"specialUse": None}, "FORBIDDEN_OPERATION", ["set", "specialUse"]),
        (["Sent"], {"specialUse": "TRASH"}, "FORBIDDEN_OPERATION", ["set", "specialUse"]),
        (["A", "Sent"], {"specialUse": "ARCHIVE"}, "VALIDATION", ["set", "specialUse"]),
        (["A"], {"retention": "PT0.1S"}, "VALIDATION", ["set", "retention"]),
        (["A"], {"apply": True, "hidden": True}, "VALIDATION", ["set", "retention"]),
        (["A"], {}, "VALIDATION", ["set"]),
        ([], {"hidden": True}, "VALIDATION", ["mailboxes"]),
    ],
)  # fmt: skip
async def test_what_is_not_changed(
    ada: Client, paths: list[str], patch: dict[str, Any], code: str, path: list[str]
) -> None:
    await create_mailboxes(ada, "A")
    before = await rows(ada.world, "SELECT * FROM mailboxes ORDER BY id")
    (error,) = (await update(ada, *paths, **patch))["errors"]
    assert (error["code"], error["path"]) == (code, path)
    assert await rows(ada.world, "SELECT * FROM mailboxes ORDER BY id") == before


async def ends(world: Environment) -> list[Any]:
    return [end for (end,) in await rows(world, "SELECT expires FROM messages ORDER BY id")]


async def test_a_retention_holds_for_what_comes_and_for_what_is_there_if_asked(
    ada: Client, world: Environment, clock: Clock
) -> None:
    await create_mailboxes(ada, "A")
    await append_unread_messages(ada, "A", "one", "two")
    clock.tick(days=1)
    await update(ada, "A", retention="P7D")
    await append_unread_messages(ada, "A", "three")
    assert [bool(end) for end in await ends(world)] == [False, False, True]
    last = await reached(world, ada.user.id)
    assert (await update(ada, "A", retention="P7D", apply=True))["task"] is None
    assert [str(end)[:10] for end in await ends(world)] == [
        "2030-01-08",
        "2030-01-08",
        "2030-01-09",
    ]
    assert [len(ids) for _, ids in await journal(world, ada.user.id, last)] == [2]
    await update(ada, "A", retention=None, apply=True)
    assert await ends(world) == [None] * 3


async def test_many_messages_are_brought_along_by_a_task(ada: Client, world: Environment) -> None:
    await create_mailboxes(ada, "A")
    await append_unread_messages(ada, "A", "one", "two", "three")
    what = MailboxUpdate(
        [MailboxSelector(path="A")], {"retention": timedelta(days=7)}, applies_retention=True
    )
    task = (await mailbox_update.update_mailboxes(context_with_options(ada, bulk=2), what)).task
    assert task is not None
    assert (task.kind, task.total, await ends(world)) == ("MAILBOX_RETENTION", 3, [None] * 3)
    assert await tasks.run_next_task(world)
    assert all(await ends(world))


async def test_many_messages_are_archived_with_their_folder(
    ada: Client, world: Environment
) -> None:
    await create_mailboxes(ada, "A")
    await append_unread_messages(ada, "A", *map(str, range(5)))
    assert (await delete_mailboxes(ada, "A"))["errors"] == []
    ((many,),) = await rows(world, "SELECT count(*) FROM messages WHERE archived_from = 'A'")
    assert many == 5


# of other users


async def test_an_administrator_does_it_for_many_users(
    ada: Client, bob: Client, root: Client
) -> None:
    users: dict[str, Any] = {"users": {"usernames": ["ada", "bob"]}}
    made = await run_mailbox_mutation(root, "mailboxCreate", paths=["Team/News"], **users)
    assert [box["path"] for box in made["mailboxes"]] == ["Team/News"] * 2
    for client in (ada, bob):
        assert [p for p in await list_mailbox_paths(client) if p not in DEFAULT_MAILBOXES] == [
            "Team",
            "Team/News",
        ]
    await run_mailbox_mutation(root, "mailboxSubscribe", paths=["Later"], **users)
    moved = await run_mailbox_mutation(
        root, "mailboxRename", mailbox={"path": "Team"}, newPath="All", **users
    )
    assert [box["path"] for box in moved["mailboxes"]] == ["All", "All/News"] * 2
    spread: dict[str, Any] = {"mailbox": {"specialUse": "SENT"}, "newPath": "All/Sent"}
    assert (await run_mailbox_mutation(root, "mailboxRename", **spread, **users))["errors"] == []
    assert "All/Sent" in await list_mailbox_paths(bob)
    await create_mailboxes(bob, "Own")
    (error,) = (await run_mailbox_mutation(root, "mailboxCreate", paths=["Own"], **users))["errors"]
    assert (error["code"], error["message"].partition(":")[0]) == ("CONFLICT", "bob")
    gone = await run_mailbox_mutation(
        root, "mailboxDelete", "deletedIds", mailboxes=[{"path": "All/News"}], **users
    )
    assert len(gone["deletedIds"]) == 2
    assert await subscribed(bob) == (
        ["INBOX", "All", "All/Sent", *DEFAULT_MAILBOXES[1:3], "Own", "Trash"],
        ["Later"],
    )


async def test_many_users_cost_as_many_statements_as_one(
    ada: Client, root: Client, world: Environment, statements: list[str]
) -> None:
    async def cost(domain: str, path: str) -> int:
        users: dict[str, Any] = {"users": {"domains": [domain]}}
        del statements[:]
        answer = await run_mailbox_mutation(
            root, "mailboxCreate", "journalCursor", paths=[path], **users
        )
        await run_mailbox_mutation(
            root,
            "mailboxRename",
            "journalCursor",
            mailbox={"path": path},
            newPath=f"X/{path}",
            **users,
        )
        assert answer["errors"] == []
        return len(statements)

    for n in range(12):
        await make_client(world, ada.http, f"user{n}")
    alone = {"input": {"address": "zoe@alone.example", "passwordDisabled": True}}
    await root(
        "mutation ($input: UserCreateInput!) { userCreate(input: $input) { errors { code } } }",
        **alone,
    )
    await cost("alone.example", "W")
    assert await cost("alone.example", "A/B") == await cost("example.org", "A/B")


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("mailboxCreate", {"paths": ["A"]}),
        ("mailboxRename", {"mailbox": {"path": "Sent"}, "newPath": "A"}),
        ("mailboxSubscribe", {"paths": ["A"]}),
        ("mailboxMetadataSet", {"mailbox": {"path": "Sent"}, "key": "/private/x", "value": "x"}),
    ],
)
async def test_who_may_change_the_folders_of_others(
    ada: Client, bob: Client, world: Environment, name: str, given: dict[str, Any]
) -> None:
    bare = await make_domain_admin(world, ada.http, "bare", [])
    chief = await make_domain_admin(world, ada.http, "chief", [AdminPermission.LOGIN_AS])
    boss = await make_client(world, ada.http, "boss", role=Role.ADMIN)
    users: dict[str, Any] = {"users": {"usernames": ["ada"]}}
    for client, code in ((bob, "NOT_FOUND"), (bare, "FORBIDDEN")):
        (error,) = (await run_mailbox_mutation(client, name, "journalCursor", **given, **users))[
            "errors"
        ]
        assert error["code"] == code
    over: dict[str, Any] = {"users": {"usernames": ["boss"]}}
    (error,) = (await run_mailbox_mutation(chief, name, "journalCursor", **given, **over))["errors"]
    assert error["code"] in ("NOT_FOUND", "FORBIDDEN")
    assert (await run_mailbox_mutation(chief, name, "journalCursor", **given, **users))[
        "errors"
    ] == []
    assert "A" not in await list_mailbox_paths(boss)


async def test_a_folder_of_another_user_is_changed_by_who_manages_them(
    ada: Client, bob: Client, root: Client
) -> None:
    await create_mailboxes(ada, "A")
    given: dict[str, Any] = {"user": {"username": "ada"}, "mailboxes": [{"path": "A"}]}
    given["set"] = {"hidden": True}
    (error,) = (await run_mailbox_mutation(bob, "mailboxUpdate", **given))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["user"])
    assert "A" in await list_mailbox_paths(ada)
    assert (await run_mailbox_mutation(root, "mailboxUpdate", **given))["errors"] == []
    assert "A" not in await list_mailbox_paths(ada)


async def test_a_message_arrives_while_folders_move(ada: Client) -> None:
    await create_mailboxes(ada, "A/B")
    await asyncio.gather(
        *(receive(ada, f"letter {n}") for n in range(3)), rename_mailbox(ada, "A", "C")
    )
    assert (await ada.box()).total == 3
