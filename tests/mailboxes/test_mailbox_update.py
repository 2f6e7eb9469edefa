"""Test mailbox updates, subscriptions, concurrent renames, and mailboxes of other users."""

import asyncio
from typing import Any

import pytest

from models.errors import LimitReached
from models.events.event_types import EventType
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from resolvers.context import Context
from resolvers.mailboxes import create as mailbox_create
from resolvers.mailboxes import delete as mailbox_delete
from resolvers.mailboxes import rename as mailbox_rename
from resolvers.mailboxes import subscription_mutations
from resolvers.mailboxes.create import NewMailboxes
from resolvers.mailboxes.delete import MailboxDeletion
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.mailboxes.rename import MailboxRename
from tests.conftest import GraphQLClient, client_context, deliver_to, make_client
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import try_update_users
from tests.support.case_loop import each_case
from tests.support.operations.mailbox_operations import (
    DEFAULT_MAILBOXES,
    append_unread_messages,
    context_with_options,
    create_mailboxes,
    delete_mailboxes,
    list_mailbox_paths,
    rename_mailbox,
    run_mailbox_mutation,
    update_by_path,
)
from tests.support.schema.error_paths import item_index
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

pytestmark = pytest.mark.usefixtures("verify_consistency")


def refs(*paths: str) -> list[dict[str, str]]:
    """Return references to mailboxes by path."""
    return [{"path": path} for path in paths]


async def load_subscriptions(client: GraphQLClient) -> tuple[list[str], list[str]]:
    """Load the paths of subscribed mailboxes, and the subscribed paths without a mailbox."""
    document = """{ user { subscribedPaths
      mailboxes(filter: {subscribed: true, showHidden: true}) { nodes { path } } } }"""
    user = (await client(document))["user"]
    return [mailbox["path"] for mailbox in user["mailboxes"]["nodes"]], user["subscribedPaths"]


async def test_rename_statement_count_is_independent_of_subtree(
    ada: GraphQLClient, statements: list[str]
) -> None:
    async def count_statements(path: str, new_path: str) -> int:
        del statements[:]
        await mailbox_rename.rename_mailbox(
            client_context(ada), MailboxRename(MailboxSelector(path=path), new_path)
        )
        return len(statements)

    await create_mailboxes(ada, "A/B", "C")
    expected = await count_statements("A", "X/A")
    await mailbox_create.create_mailboxes(
        client_context(ada), NewMailboxes([f"C/{n}/D" for n in range(60)])
    )
    assert await count_statements("C", "Y/C") == expected


async def test_subtree_moves_up_to_free_path(ada: GraphQLClient, environment: Environment) -> None:
    await create_mailboxes(ada, "A/A/A/A", "A/A/B")
    sql = "UPDATE mailboxes SET path = 'Z' WHERE path = 'A'"  # an import can leave this state
    async with environment.write_session() as session:
        await (await session.connection()).exec_driver_sql(sql)
    answer = await rename_mailbox(ada, "A/A", "A")
    assert (answer["errors"], [mailbox["path"] for mailbox in answer["mailboxes"]]) == (
        [],
        ["A", "A/A", "A/A/A", "A/B"],
    )


async def test_concurrent_renames_leave_a_consistent_tree(ada: GraphQLClient) -> None:
    for nth in range(3):
        await create_mailboxes(ada, f"A{nth}/B/C", f"X{nth}")
        answers = await asyncio.gather(
            rename_mailbox(ada, f"A{nth}", f"X{nth}/A"),
            rename_mailbox(ada, f"A{nth}/B", f"X{nth}/B"),
        )
        codes = [[error["code"] for error in answer["errors"]] for answer in answers]
        tree_paths = [
            path
            for path in await list_mailbox_paths(ada)
            if path.startswith((f"A{nth}", f"X{nth}"))
        ]
        if codes == [[], []]:  # the submailbox was renamed first
            assert tree_paths == [f"X{nth}", f"X{nth}/A", f"X{nth}/B", f"X{nth}/B/C"]
        else:
            assert codes == [[], ["NOT_FOUND"]]
            assert tree_paths == [f"X{nth}", f"X{nth}/A", f"X{nth}/A/B", f"X{nth}/A/B/C"]


async def test_subscriptions_follow_rename_by_default(ada: GraphQLClient) -> None:
    await create_mailboxes(ada, "A/B", "A/C")
    await run_mailbox_mutation(ada, "mailboxUnsubscribe", mailboxes=refs("A/C"))
    await run_mailbox_mutation(ada, "mailboxSubscribe", mailboxes=refs("A/Gone", "X/C"))
    await rename_mailbox(ada, "A", "X")
    subscribed_paths, paths_without_mailbox = await load_subscriptions(ada)
    assert (subscribed_paths, paths_without_mailbox) == (
        [*DEFAULT_MAILBOXES, "X", "X/B", "X/C"],
        ["X/Gone"],
    )
    rename_only: dict[str, Any] = {
        "mailbox": {"path": "X"},
        "newPath": "Y",
        "renameSubscriptions": False,
    }
    assert (await run_mailbox_mutation(ada, "mailboxRename", **rename_only))["errors"] == []
    subscribed_paths, paths_without_mailbox = await load_subscriptions(ada)
    assert (subscribed_paths, paths_without_mailbox) == (
        DEFAULT_MAILBOXES,
        ["X", "X/B", "X/C", "X/Gone"],
    )
    await rename_mailbox(ada, "Y", "X")
    assert (await load_subscriptions(ada))[0] == [*DEFAULT_MAILBOXES, "X", "X/B", "X/C"]


async def test_path_is_subscribed_before_its_mailbox_exists(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    last = await load_stream_position(ada.environment, ada.user.id)
    answer = await run_mailbox_mutation(
        ada, "mailboxSubscribe", mailboxes=refs("Later/On", "/inbox/", "Sent")
    )
    assert [mailbox["path"] for mailbox in answer["mailboxes"]] == ["INBOX", "Sent"]
    assert await load_subscriptions(ada) == (DEFAULT_MAILBOXES, ["Later/On"])
    assert await load_subscriptions(bob) == (DEFAULT_MAILBOXES, [])
    assert await load_journal_entries(ada.environment, ada.user.id, last) == [
        (EventType.USER_UPDATED, [ada.user.id])
    ]
    await run_mailbox_mutation(ada, "mailboxUnsubscribe", mailboxes=refs("Sent", "Nowhere"))
    mailboxes, _ = await create_mailboxes(ada, "Later/On", subscribe=False)
    assert mailboxes[0]["subscribed"] is True
    assert (await load_subscriptions(ada))[1] == []


async def test_mailbox_delete_can_keep_subscription(ada: GraphQLClient) -> None:
    await create_mailboxes(ada, "A", "B")
    await delete_mailboxes(ada, "A")
    await delete_mailboxes(ada, "B", unsubscribe=False)
    assert await load_subscriptions(ada) == (DEFAULT_MAILBOXES, ["B"])
    await create_mailboxes(ada, "A", "B", subscribe=False)
    assert (await load_subscriptions(ada))[0] == ["INBOX", "B", *DEFAULT_MAILBOXES[1:]]


@pytest.mark.parametrize("is_rename", [False, True])
async def test_number_of_subscriptions_without_mailbox_is_limited(
    ada: GraphQLClient, *, is_rename: bool
) -> None:
    """Each way to keep the subscription of a path that loses its mailbox has the limit."""
    ctx = context_with_options(ada, mailboxes_max_per_user=10)
    for round_ in range(4):
        await mailbox_create.create_mailboxes(ctx, NewMailboxes([f"A{round_}", f"B{round_}"]))
        selectors = [MailboxSelector(path=f"{letter}{round_}") for letter in "AB"]
        for selector in selectors:
            await keep_subscription_without_mailbox(ctx, selector, is_rename=is_rename)
    await mailbox_create.create_mailboxes(ctx, NewMailboxes(["X", "Y", "Z"]))
    for path in ("X", "Y"):
        selector = MailboxSelector(path=path)
        await keep_subscription_without_mailbox(ctx, selector, is_rename=is_rename)
    selector = MailboxSelector(path="Z")
    with pytest.raises(LimitReached) as raised:
        await keep_subscription_without_mailbox(ctx, selector, is_rename=is_rename)
    path_in_input = "mailbox" if is_rename else "mailboxes"
    assert (raised.value.limit, raised.value.used, raised.value.path) == (10, 10, [path_in_input])
    assert "Z" in await list_mailbox_paths(ada)
    assert len((await load_subscriptions(ada))[1]) == 10
    await mailbox_delete.delete_mailboxes(ctx, MailboxDeletion([MailboxSelector(path="Z")]))


async def keep_subscription_without_mailbox(
    ctx: Context, selector: MailboxSelector, *, is_rename: bool
) -> None:
    """Rename the mailbox and delete it, or only delete it, and keep its first path subscribed."""
    if is_rename:
        rename = MailboxRename(selector, f"New{selector.path}", moves_subscriptions=False)
        await mailbox_rename.rename_mailbox(ctx, rename)
        selector = MailboxSelector(path=f"New{selector.path}")
    deletion = MailboxDeletion([selector], deletes_subscriptions=is_rename)
    await mailbox_delete.delete_mailboxes(ctx, deletion)


async def test_subscription_by_id_role_and_object_id(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    (mailbox,), _ = await create_mailboxes(ada, "A", subscribe=False)
    object_id = (await ada.load_mailbox("A")).object_id
    names = [{"specialUse": "SENT"}, {"objectId": object_id}]
    payload = await run_mailbox_mutation(ada, "mailboxUnsubscribe", mailboxes=names)
    assert [one["path"] for one in payload["mailboxes"]] == ["A", "Sent"]
    subscribed = [path for path in DEFAULT_MAILBOXES if path != "Sent"]
    assert await load_subscriptions(ada) == (subscribed, [])
    by_id = [{"path": "Later"}, {"id": mailbox["id"]}]
    payload = await run_mailbox_mutation(bob, "mailboxSubscribe", mailboxes=by_id)
    (error,) = payload["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["mailboxes", "1"])
    assert await load_subscriptions(bob) == (DEFAULT_MAILBOXES, [])
    both: dict[str, Any] = {"users": {"usernames": ["ada", "bob"]}}
    for reference in ({"specialUse": "SENT"}, {"path": "Sent"}):
        payload = await run_mailbox_mutation(
            root, "mailboxSubscribe", mailboxes=[reference], **both
        )
        assert [one["path"] for one in payload["mailboxes"]] == ["Sent", "Sent"]
    assert await load_subscriptions(ada) == (DEFAULT_MAILBOXES, [])


async def test_invalid_path_is_not_subscribed(ada: GraphQLClient) -> None:
    cases: list[tuple[list[str], list[str]]] = [
        ([], ["mailboxes"]),
        (["A//B"], ["mailboxes", "0", "path"]),
        (["x" * 513], ["mailboxes", "0", "path"]),
        (["A", "Tr\N{CYRILLIC SMALL LETTER A}sh"], ["mailboxes", "1", "path"]),
    ]
    for case in each_case(cases):
        with case as (paths, path):
            payload = await run_mailbox_mutation(ada, "mailboxSubscribe", mailboxes=refs(*paths))
            (error,) = payload["errors"]
            assert (error["code"], error["path"]) == ("VALIDATION", path)
            assert await load_subscriptions(ada) == (DEFAULT_MAILBOXES, [])


async def test_subscriptions_over_limit_are_refused(ada: GraphQLClient) -> None:
    ctx = context_with_options(ada, mailboxes_max_per_user=10)
    selectors = [MailboxSelector(path=f"A{n}") for n in range(11)]
    with pytest.raises(LimitReached) as raised:
        await subscription_mutations.set_subscribed(ctx, selectors, is_subscribed=True)
    assert (raised.value.limit, raised.value.path) == (10, ["mailboxes"])
    await subscription_mutations.set_subscribed(ctx, selectors[:10], is_subscribed=True)
    assert len((await load_subscriptions(ada))[1]) == 10


async def test_mailbox_update_is_all_or_none(ada: GraphQLClient) -> None:
    await create_mailboxes(ada, "A", "B")
    last = await load_stream_position(ada.environment, ada.user.id)
    answer = await update_by_path(
        ada, "A", "B", "A", hidden=True, retention="P7D", subscribed=False
    )
    changed = {"hidden": True, "retention": "P7D", "subscribed": False, "specialUse": None}
    assert answer["mailboxes"] == [{"path": path, **changed} for path in ("A", "B")]
    ((kind, ids),) = await load_journal_entries(ada.environment, ada.user.id, last)
    assert (kind, len(ids)) == (EventType.MAILBOX_UPDATED, 2)
    last = await load_stream_position(ada.environment, ada.user.id)
    assert (await update_by_path(ada, "A", hidden=True))["errors"] == []
    assert await load_stream_position(ada.environment, ada.user.id) == last
    (error,) = (await update_by_path(ada, "A", "Nowhere", hidden=False))["errors"]
    assert (error["code"], item_index(error)) == ("NOT_FOUND", 1)
    assert "A" not in await list_mailbox_paths(ada)


async def test_special_use_moves_to_another_mailbox(ada: GraphQLClient) -> None:
    await create_mailboxes(ada, "A", "B")
    for path in ("A", "B"):
        answer = await update_by_path(ada, path, specialUse="ARCHIVE")
        assert [mailbox["specialUse"] for mailbox in answer["mailboxes"]] == ["ARCHIVE"]
    assert (await ada.load_mailbox("A")).special_use is None
    last = await load_stream_position(ada.environment, ada.user.id)
    assert (await update_by_path(ada, "B", specialUse=None))["errors"] == []
    assert (await update_by_path(ada, "A", specialUse="SENT"))["errors"] == []
    assert (await ada.load_mailbox("Sent")).special_use is None
    id_counts = [
        len(ids) for _, ids in await load_journal_entries(ada.environment, ada.user.id, last)
    ]
    assert id_counts == [1, 2]


async def test_forbidden_mailbox_update_is_refused(ada: GraphQLClient) -> None:
    await create_mailboxes(ada, "A")
    cases: list[tuple[list[str], dict[str, Any], str, list[str]]] = [
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
    ]  # fmt: skip
    for case in each_case(cases):
        with case as (paths, patch, code, path):
            before = await select_rows(ada.environment, "SELECT * FROM mailboxes ORDER BY id")
            (error,) = (await update_by_path(ada, *paths, **patch))["errors"]
            assert (error["code"], error["path"]) == (code, path)
            assert (
                await select_rows(ada.environment, "SELECT * FROM mailboxes ORDER BY id") == before
            )


async def test_many_messages_are_archived_with_deleted_mailbox(
    ada: GraphQLClient, environment: Environment
) -> None:
    await create_mailboxes(ada, "A")
    await append_unread_messages(ada, "A", *map(str, range(5)))
    assert (await delete_mailboxes(ada, "A"))["errors"] == []
    ((deleted_count,),) = await select_rows(
        environment, "SELECT count(*) FROM messages WHERE deleted_from = 'A'"
    )
    assert deleted_count == 5


async def test_admin_changes_mailboxes_of_several_users(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    users: dict[str, Any] = {"users": {"usernames": ["ada", "bob"]}}
    created = await run_mailbox_mutation(root, "mailboxCreate", paths=["Team/News"], **users)
    assert [mailbox["path"] for mailbox in created["mailboxes"]] == ["Team/News"] * 2
    for client in (ada, bob):
        assert [
            path for path in await list_mailbox_paths(client) if path not in DEFAULT_MAILBOXES
        ] == [
            "Team",
            "Team/News",
        ]
    await run_mailbox_mutation(root, "mailboxSubscribe", mailboxes=refs("Later"), **users)
    moved = await run_mailbox_mutation(
        root, "mailboxRename", mailbox={"path": "Team"}, newPath="All", **users
    )
    assert [mailbox["path"] for mailbox in moved["mailboxes"]] == ["All", "All/News"] * 2
    sent_rename: dict[str, Any] = {"mailbox": {"specialUse": "SENT"}, "newPath": "All/Sent"}
    assert (await run_mailbox_mutation(root, "mailboxRename", **sent_rename, **users))[
        "errors"
    ] == []
    assert "All/Sent" in await list_mailbox_paths(bob)
    await create_mailboxes(bob, "Own")
    (error,) = (await run_mailbox_mutation(root, "mailboxCreate", paths=["Own"], **users))["errors"]
    assert (error["code"], error["message"].partition(":")[0]) == ("CONFLICT", "bob")
    deleted = await run_mailbox_mutation(
        root, "mailboxDelete", "deletedIds", mailboxes=[{"path": "All/News"}], **users
    )
    assert len(deleted["deletedIds"]) == 2
    assert await load_subscriptions(bob) == (
        ["INBOX", "All", "All/Sent", *DEFAULT_MAILBOXES[1:3], "Own", "Trash"],
        ["Later"],
    )


async def test_mailbox_statement_count_is_independent_of_users(
    ada: GraphQLClient, root: GraphQLClient, environment: Environment, statements: list[str]
) -> None:
    async def count_statements(domain: str, path: str) -> int:
        users: dict[str, Any] = {"users": {"domains": [{"name": domain}]}}
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
        answer = await run_mailbox_mutation(
            root,
            "mailboxUpdate",
            "journalCursor",
            mailboxes=refs(f"X/{path}"),
            set={"inheritRetention": True, "hidden": True},
            **users,
        )
        assert answer["errors"] == []
        return len(statements)

    for n in range(12):
        await make_client(environment, ada.http, f"user{n}")
    single_user = {"input": {"address": "zoe@alone.example", "passwordDisabled": True}}
    await root(
        "mutation ($input: UserCreateInput!) { userCreate(input: $input) { errors { code } } }",
        **single_user,
    )
    await count_statements("alone.example", "W")
    assert await count_statements("alone.example", "A/B") == await count_statements(
        "example.org", "A/B"
    )


async def test_mailboxes_of_several_users_are_updated_together(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    for client, retention in ((ada, "P5D"), (bob, "P9D")):
        await create_mailboxes(client, "A", "B", retention="P1D")
        await update_by_path(client, "B", specialUse="ARCHIVE")
        assert (await try_update_users(client, retention=retention))[1] == []
    users: dict[str, Any] = {"users": {"usernames": ["ada", "bob"]}}
    patch = {"inheritRetention": True, "specialUse": "ARCHIVE"}
    payload = await run_mailbox_mutation(
        root,
        "mailboxUpdate",
        "mailboxes { path specialUse retention retentionInherited }",
        mailboxes=refs("A"),
        set=patch,
        **users,
    )
    assert payload["errors"] == []
    assert payload["mailboxes"] == [
        {"path": "A", "specialUse": "ARCHIVE", "retention": days, "retentionInherited": True}
        for days in ("P5D", "P9D")
    ]
    for client in (ada, bob):
        query = '{ mailbox(by: {path: "B"}) { specialUse retention } }'
        assert await client(query) == {"mailbox": {"specialUse": None, "retention": "P1D"}}
    await create_mailboxes(ada, "Own")
    (error,) = (
        await run_mailbox_mutation(
            root, "mailboxUpdate", mailboxes=refs("A", "Own"), set={"hidden": True}, **users
        )
    )["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["mailboxes", "1"])
    assert {"A", "Own"} <= {*await list_mailbox_paths(ada)}


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("mailboxUpdate", {"mailboxes": refs("Sent"), "set": {"subscribed": False}}),
        ("mailboxCreate", {"paths": ["A"]}),
        ("mailboxRename", {"mailbox": {"path": "Sent"}, "newPath": "A"}),
        ("mailboxSubscribe", {"mailboxes": refs("A")}),
        ("mailboxAnnotationSet", {"mailbox": {"path": "Sent"}, "key": "/private/x", "value": "x"}),
    ],
)
async def test_mailbox_changes_by_admin_need_login_as(
    ada: GraphQLClient,
    bob: GraphQLClient,
    environment: Environment,
    name: str,
    arguments: dict[str, Any],
) -> None:
    without_permission = await make_domain_admin(environment, ada.http, "bare", [])
    with_permission = await make_domain_admin(
        environment, ada.http, "chief", [AdminPermission.IMPERSONATE]
    )
    admin = await make_client(environment, ada.http, "boss", role=Role.ADMIN)
    users: dict[str, Any] = {"users": {"usernames": ["ada"]}}
    for client, code in ((bob, "NOT_FOUND"), (without_permission, "FORBIDDEN")):
        (error,) = (
            await run_mailbox_mutation(client, name, "journalCursor", **arguments, **users)
        )["errors"]
        assert error["code"] == code
    admin_selection: dict[str, Any] = {"users": {"usernames": ["boss"]}}
    (error,) = (
        await run_mailbox_mutation(
            with_permission, name, "journalCursor", **arguments, **admin_selection
        )
    )["errors"]
    assert error["code"] in ("NOT_FOUND", "FORBIDDEN")
    assert (
        await run_mailbox_mutation(with_permission, name, "journalCursor", **arguments, **users)
    )["errors"] == []
    assert "A" not in await list_mailbox_paths(admin)


async def test_mailbox_of_user_is_updated_by_manager_only(
    ada: GraphQLClient, bob: GraphQLClient, root: GraphQLClient
) -> None:
    await create_mailboxes(ada, "A")
    arguments: dict[str, Any] = {"users": {"usernames": ["ada"]}, "mailboxes": [{"path": "A"}]}
    arguments["set"] = {"hidden": True}
    (error,) = (await run_mailbox_mutation(bob, "mailboxUpdate", **arguments))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["users", "usernames", "0"])
    assert "A" in await list_mailbox_paths(ada)
    assert (await run_mailbox_mutation(root, "mailboxUpdate", **arguments))["errors"] == []
    assert "A" not in await list_mailbox_paths(ada)


async def test_messages_arrive_during_rename(ada: GraphQLClient) -> None:
    await create_mailboxes(ada, "A/B")
    await asyncio.gather(
        *(deliver_to(ada, f"letter {n}") for n in range(3)), rename_mailbox(ada, "A", "C")
    )
    assert (await ada.load_mailbox()).message_count == 3
