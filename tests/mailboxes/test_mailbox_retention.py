"""Test the retention of mailboxes: inherited or their own, for new and for old messages."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from resolvers.admin import tasks
from resolvers.context import Context
from resolvers.mailboxes import update as mailbox_update
from resolvers.mailboxes.loaders import MailboxSelector
from resolvers.mailboxes.update import MailboxUpdate
from resolvers.users.selection import UserSelector
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, ManualClock
from tests.support.accounts.user_operations import try_update_users
from tests.support.operations.mailbox_operations import (
    append_unread_messages,
    context_with_options,
    create_mailboxes,
    run_mailbox_mutation,
    update_by_path,
)
from tests.support.stores.counter_check import (
    load_journal_entries,
    load_stream_position,
    select_rows,
)

pytestmark = pytest.mark.usefixtures("verify_consistency")


async def load_expiry_times(environment: Environment) -> list[Any]:
    return [
        expires_at
        for (expires_at,) in await select_rows(
            environment, "SELECT expires_at FROM messages ORDER BY id"
        )
    ]


async def test_retention_applies_to_new_messages_and_to_old_on_request(
    ada: GraphQLClient, environment: Environment, clock: ManualClock
) -> None:
    await create_mailboxes(ada, "A")
    await append_unread_messages(ada, "A", "one", "two")
    clock.tick(days=1)
    await update_by_path(ada, "A", retention="P7D")
    await append_unread_messages(ada, "A", "three")
    assert [bool(expires_at) for expires_at in await load_expiry_times(environment)] == [
        False,
        False,
        True,
    ]
    last = await load_stream_position(environment, ada.user.id)
    assert (await update_by_path(ada, "A", retention="P7D", apply=True))["tasks"] == []
    assert [str(expires_at)[:10] for expires_at in await load_expiry_times(environment)] == [
        "2030-01-08",
        "2030-01-08",
        "2030-01-09",
    ]
    assert [len(ids) for _, ids in await load_journal_entries(environment, ada.user.id, last)] == [
        2
    ]
    await update_by_path(ada, "A", retention=None, apply=True)
    assert await load_expiry_times(environment) == [None] * 3


RETENTION_QUERY = """query ($path: String!) {
  mailbox(by: {path: $path}) { retention retentionInherited } }"""


async def load_retention(client: GraphQLClient, path: str) -> tuple[str | None, bool]:
    mailbox = (await client(RETENTION_QUERY, path=path))["mailbox"]
    return mailbox["retention"], mailbox["retentionInherited"]


async def test_retention_is_inherited_until_mailbox_has_its_own(ada: GraphQLClient) -> None:
    await create_mailboxes(ada, "A", "B")
    assert await load_retention(ada, "A") == (None, True)
    await update_by_path(ada, "B", retention=None)
    assert (await try_update_users(ada, retention="P7D"))[1] == []
    assert await load_retention(ada, "A") == ("P7D", True)
    assert await load_retention(ada, "B") == (None, False)
    await update_by_path(ada, "A", retention="P1D")
    assert await load_retention(ada, "A") == ("P1D", False)
    await update_by_path(ada, "A", hidden=True)
    assert await load_retention(ada, "A") == ("P1D", False)
    await update_by_path(ada, "A", "B", inheritRetention=True)
    assert await load_retention(ada, "A") == await load_retention(ada, "B") == ("P7D", True)
    assert (await try_update_users(ada, retention=None))[1] == []
    assert await load_retention(ada, "A") == (None, True)


async def test_trash_and_junk_have_their_own_retention(ada: GraphQLClient) -> None:
    assert (
        await load_retention(ada, "Trash") == await load_retention(ada, "Junk") == ("P30D", False)
    )
    assert (await try_update_users(ada, retention="P7D"))[1] == []
    assert await load_retention(ada, "Trash") == ("P30D", False)


async def test_changed_retention_of_user_is_recorded_for_each_inheriting_mailbox(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    await create_mailboxes(ada, "A")
    await update_by_path(ada, "A", retention="P1D")
    last = await load_stream_position(environment, ada.user.id)
    assert (await try_update_users(ada, retention="P7D"))[1] == []
    entries = await load_journal_entries(environment, ada.user.id, last)
    assert [(kind, len(ids)) for kind, ids in entries] == [
        ("MAILBOX_UPDATED", 3),  # INBOX, Sent, Drafts
        ("USER_UPDATED", 1),
    ]
    assert await load_retention(bob, "INBOX") == (None, True)


async def test_inherited_retention_of_many_users_takes_constant_statements(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, statements: list[str]
) -> None:
    async def count_statements(*users: GraphQLClient, retention: str) -> int:
        del statements[:]
        assert (await try_update_users(root, *users, retention=retention))[1] == []
        return len(statements)

    await count_statements(ada, bob, retention="P1D")
    one = await count_statements(ada, retention="P2D")
    assert await count_statements(ada, bob, retention="P3D") == one
    assert await load_retention(bob, "Sent") == ("P3D", True)


async def test_inherited_retention_applies_to_old_messages_on_request(
    ada: GraphQLClient, environment: Environment
) -> None:
    await create_mailboxes(ada, "A")
    assert (await try_update_users(ada, retention="P7D"))[1] == []
    await update_by_path(ada, "A", retention=None)
    await append_unread_messages(ada, "A", "one")
    assert await load_expiry_times(environment) == [None]
    await update_by_path(ada, "A", inheritRetention=True, apply=True)
    assert all(await load_expiry_times(environment))


@pytest.mark.parametrize(
    ("patch", "path"),
    [
        ({"retention": "P1D", "inheritRetention": True}, ["set", "inheritRetention"]),
        ({"retention": None, "inheritRetention": True}, ["set", "inheritRetention"]),
        ({"retention": "PT0S"}, ["set", "retention"]),
    ],
)
async def test_contradictory_or_empty_retention_is_refused(
    ada: GraphQLClient, patch: dict[str, Any], path: list[str]
) -> None:
    await create_mailboxes(ada, "A")
    payload = await update_by_path(ada, "A", **patch)
    assert [(error["code"], error["path"]) for error in payload["errors"]] == [("VALIDATION", path)]
    assert await load_retention(ada, "A") == (None, True)


async def test_new_mailbox_inherits_retention_unless_it_is_given(ada: GraphQLClient) -> None:
    for path, fields in (("Own", {"retention": "P1D"}), ("Ever", {"retention": None}), ("Any", {})):
        await run_mailbox_mutation(ada, "mailboxCreate", paths=[path], **fields)
    assert (await try_update_users(ada, retention="P7D"))[1] == []
    assert await load_retention(ada, "Own") == ("P1D", False)
    assert await load_retention(ada, "Ever") == (None, False)
    assert await load_retention(ada, "Any") == ("P7D", True)
    payload = await run_mailbox_mutation(ada, "mailboxCreate", paths=["No"], retention="PT0S")
    assert [error["path"] for error in payload["errors"]] == [["retention"]]


async def test_task_applies_retention_to_many_messages(
    ada: GraphQLClient, environment: Environment
) -> None:
    await create_mailboxes(ada, "A")
    await append_unread_messages(ada, "A", "one", "two", "three")
    request = MailboxUpdate(
        [MailboxSelector(path="A")], {"retention": timedelta(days=7)}, applies_retention=True
    )
    (task,) = (
        await mailbox_update.update_mailboxes(context_with_options(ada, bulk_max_items=2), request)
    ).tasks
    assert (task.kind, task.total_count, await load_expiry_times(environment)) == (
        "MAILBOX_RETENTION",
        3,
        [None] * 3,
    )
    assert await tasks.run_next_task(environment)
    assert all(await load_expiry_times(environment))


async def test_each_user_has_a_task_that_applies_retention_to_many_messages(
    ada: GraphQLClient, bob: GraphQLClient, environment: Environment
) -> None:
    for client in (ada, bob):
        await create_mailboxes(client, "A")
        await append_unread_messages(client, "A", "one", "two")
    request = MailboxUpdate(
        [MailboxSelector(path="A")], {"retention": timedelta(days=7)}, applies_retention=True
    )
    few = replace(environment, options=replace(environment.options, bulk_max_items=2))
    ctx = Context(few, Viewer(role=Role.ROOT, scopes=frozenset({Scope.FULL})))
    selector = UserSelector(was_sent=True, usernames=("ada", "bob"))
    created = (await mailbox_update.update_mailboxes(ctx, request, selector)).tasks
    assert [(task.user_id, task.total_count) for task in created] == [
        (ada.user.id, 2),
        (bob.user.id, 2),
    ]
    while await tasks.run_next_task(environment):
        pass
    assert len(await load_expiry_times(environment)) == 4
    assert all(await load_expiry_times(environment))
