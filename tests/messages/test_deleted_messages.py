"""Deleted messages: listed, found, and brought back."""

from typing import Any

import httpx
import pytest
from sqlalchemy import text

from graph.types import global_ids
from mail.maintenance import housekeeping
from mail.search import index_worker
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role
from resolvers.admin import tasks
from resolvers.mailboxes import delete as mailbox_delete
from resolvers.mailboxes import loaders as mailbox_loaders
from resolvers.mailboxes import rename
from resolvers.mailboxes.delete import MailboxDeletion
from resolvers.mailboxes.loaders import MailboxSelector, NewMailboxes
from resolvers.mailboxes.rename import MailboxRename
from tests.conftest import Client, Clock, context, make_client, receive
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.user_operations import change, id_of, run
from tests.support.operations.bulk_operations import call, inbox, nodes, places
from tests.support.operations.message_pages import found
from tests.support.stores.counter_check import journal, reached, rows
from tests.support.stores.query_plans import explained

SHOWN = """id subject mailboxPath mailbox { path } archivedAt expiresAt size intro seen deleted
  from { address } to { address } hasAttachments contentType { value } user { username }"""
PAGE = """
query ($filter: MessageFilter, $orderBy: OrderDirection! = DESC, $first: Int, $after: String) {
  viewer { user { archivedMessages(
    filter: $filter, orderBy: $orderBy, first: $first, after: $after
  ) { nodes { SHOWN } totalCount pageInfo { hasNextPage endCursor } } } }
}
""".replace("SHOWN", SHOWN)
BACK = "restored { mailbox { path } message { id uid subject flags } }"
pytestmark = pytest.mark.usefixtures("examined")


@pytest.fixture
async def gone(ada: Client, clock: Clock) -> Client:
    """Ada, who has deleted a, b and c, one a minute; b from a folder that is renamed since."""
    for letter in "abc":
        await receive(ada, letter)
    await mailbox_loaders.create_mailboxes(context(ada), NewMailboxes(["Keep/Here"]))
    move = {"select": inbox("2"), "to": {"path": "Keep/Here"}}
    assert (await call(ada, "messageMove", **move))["errors"] == []
    for select in (inbox("1"), {"mailbox": {"path": "Keep/Here"}}, inbox("3")):
        assert (await call(ada, "messageDelete", select=select))["deletedCount"] == 1
        clock.tick(minutes=1)
    await rename.rename_mailbox(context(ada), MailboxRename(MailboxSelector(path="Keep"), "Kept"))
    return ada


async def page(client: Client, **ask: Any) -> Any:
    return (await client(PAGE, **ask))["viewer"]["user"]["archivedMessages"]


def letters(answer: Any) -> str:
    return "".join(node["subject"] for node in answer["nodes"])


async def back(client: Client, *letters: str, **given: Any) -> Any:
    """Bring back those of these subjects, in their order."""
    known = {node["subject"]: node["id"] for node in (await page(client))["nodes"]}
    chosen = [known[letter] for letter in letters]
    return await run(client, "archivedMessageRestore", BACK, ids=chosen, **given)


async def test_deleted_messages_are_listed_the_newest_first(gone: Client) -> None:
    answer = await page(gone)
    assert (letters(answer), answer["totalCount"]) == ("cba", 3)
    first, second, _ = answer["nodes"]
    assert (second["mailboxPath"], second["mailbox"]) == ("Keep/Here", {"path": "Kept/Here"})
    assert first["mailbox"] == {"path": "INBOX"}
    assert first["archivedAt"] == "2030-01-01T00:02:00Z"
    assert first["expiresAt"] == "2030-01-26T00:02:00Z"
    assert first["from"] == {"address": "carol@example.com"}
    assert first["user"] == {"username": "ada"}
    assert letters(await page(gone, orderBy="ASC")) == "abc"
    half = await page(gone, first=2)
    assert (letters(half), half["pageInfo"]["hasNextPage"]) == ("cb", True)
    assert letters(await page(gone, first=2, after=half["pageInfo"]["endCursor"])) == "a"


@pytest.mark.parametrize(
    ("condition", "wanted"),
    [
        ({"subject": "b"}, "b"),
        ({"query": "b"}, "b"),
        ({"query": "there"}, "cba"),
        ({"mailbox": {"path": "INBOX"}}, "ca"),
        ({"mailbox": {"path": "Kept/Here"}}, "b"),
        ({"mailbox": {"path": "Keep/Here"}}, ""),
        ({"not": {"subject": "b"}}, "ca"),
        ({"hasAttachment": True}, ""),
    ],
)
async def test_they_are_found_by_filters(
    gone: Client, condition: dict[str, Any], wanted: str
) -> None:
    for _ in range(2):  # not in the text index, and in it
        answer = await page(gone, filter=condition or None)
        assert (letters(answer), answer["totalCount"]) == (wanted, len(wanted))
        await index_worker.index_next_batch(gone.world)


async def test_drafts_and_what_is_to_be_purged_are_not_there(gone: Client, clock: Clock) -> None:
    send = {"subject": "draft", "text": "x", "isDraft": True, "uploadOnly": True}
    made = await run(gone, "messageSend", "message { id }", **send)
    await call(gone, "messageDelete", select={"ids": [made["message"]["id"]]})
    draft = global_ids.encode(
        "ArchivedMessage", global_ids.decode("Message", made["message"]["id"])
    )
    assert letters(await page(gone)) == "cba"
    done = await run(gone, "archivedMessageRestore", BACK, ids=[draft])
    assert [error["code"] for error in done["errors"]] == ["NOT_FOUND"]
    keys = [node["id"] for node in (await page(gone))["nodes"]]
    clock.tick(days=25)
    answer = await page(gone)
    assert (letters(answer), answer["totalCount"]) == ("", 0)
    done = await run(gone, "archivedMessageRestore", BACK, ids=keys)
    assert [error["code"] for error in done["errors"]] == ["NOT_FOUND"]
    await housekeeping.run_round(gone.world)
    assert await rows(gone.world, "SELECT id FROM messages") == []


async def test_they_come_back_to_where_they_were(gone: Client) -> None:
    await index_worker.index_next_batch(gone.world)
    last = await reached(gone.world, gone.user.id)
    done = await back(gone, "b", "a")
    assert done["errors"] == []
    assert [(one["mailbox"]["path"], one["message"]["uid"]) for one in done["restored"]] == [
        ("Kept/Here", 2),
        ("INBOX", 4),
    ]
    assert [kind for kind, _ in await journal(gone.world, gone.user.id, last)] == [
        ChangeKind.MESSAGE_RESTORED
    ] * 2
    assert await places(gone) == {"a": "INBOX", "b": "Kept/Here"}
    assert await found(gone, query="b") == ["b"]
    assert await found(gone, query="b", seen=False) == ["b"]
    assert letters(await page(gone)) == "c"


async def test_they_come_into_a_folder_or_into_inbox(gone: Client) -> None:
    assert (await back(gone, "c", mailbox={"path": "Kept"}))["errors"] == []
    await mailbox_delete.delete_mailboxes(
        context(gone), MailboxDeletion([MailboxSelector(path="Kept/Here")])
    )
    assert (await back(gone, "b"))["restored"][0]["mailbox"] == {"path": "INBOX"}
    assert await places(gone) == {"b": "INBOX", "c": "Kept"}
    (error,) = (await back(gone, "a", mailbox={"path": "Nowhere"}))["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["mailbox"])


async def test_a_folder_that_is_deleted_and_made_again_is_known_by_its_path(ada: Client) -> None:
    await receive(ada, "a")
    for _ in range(2):
        await mailbox_loaders.create_mailboxes(context(ada), NewMailboxes(["Keep"]))
        select: dict[str, Any] = {"all": True}
        await call(ada, "messageMove", select=select, to={"path": "Keep"})
        await mailbox_delete.delete_mailboxes(
            context(ada), MailboxDeletion([MailboxSelector(path="Keep")])
        )
        await mailbox_loaders.create_mailboxes(context(ada), NewMailboxes(["Keep"]))
        assert (await page(ada))["nodes"][0]["mailbox"] is None
        assert (await back(ada, "a"))["restored"][0]["mailbox"] == {"path": "Keep"}
        await call(ada, "messageMove", select=select, to={"path": "INBOX"})
        await mailbox_delete.delete_mailboxes(
            context(ada), MailboxDeletion([MailboxSelector(path="Keep")])
        )


async def test_the_mark_deleted_is_taken_off(ada: Client) -> None:
    await receive(ada, "a")
    await call(ada, "messageUpdate", select=inbox("1"), set={"deleted": True, "addFlags": ["x"]})
    await call(ada, "messageDelete", select=inbox("1"))
    assert (await page(ada))["nodes"][0]["deleted"] is True
    assert (await back(ada, "a"))["restored"][0]["message"]["flags"] == ["x"]


async def test_all_come_back_or_none(gone: Client, world: Environment) -> None:
    keys = [node["id"] for node in (await page(gone))["nodes"]]
    missing = global_ids.encode("ArchivedMessage", 7)
    done = await run(gone, "archivedMessageRestore", BACK, ids=[keys[0], missing])
    assert [(e["code"], e["path"], e["index"]) for e in done["errors"]] == [
        ("NOT_FOUND", ["ids"], 1)
    ]
    async with world.write_session() as session:
        await (await session.connection()).execute(text("UPDATE users SET quota = 400"))
    done = await back(gone, "a", "b", "c")
    assert [error["code"] for error in done["errors"]] == ["QUOTA_EXCEEDED"]
    assert await nodes(gone) == []
    assert letters(await page(gone)) == "cba"
    assert (await back(gone, "a"))["errors"] == []
    async with world.write_session() as session:
        await (await session.connection()).execute(text("UPDATE users SET quota = NULL"))


# what lay in a time

TIMES = {"start": "2030-01-01T00:01:00Z", "end": "2030-01-01T12:00:00Z"}


async def span(client: Client, **given: Any) -> Any:
    return await run(
        client, "archiveRestore", "task { kind state total user { username } }", **(TIMES | given)
    )


async def test_what_was_deleted_in_a_time_comes_back(gone: Client) -> None:
    done = await span(gone)
    assert done["errors"] == []
    assert done["task"] == {
        "kind": "ARCHIVE_RESTORE", "state": "QUEUED", "total": 2, "user": {"username": "ada"},
    }  # fmt: skip
    assert await nodes(gone) == []
    assert await tasks.run_next_task(gone.world)
    assert await places(gone) == {"b": "Kept/Here", "c": "INBOX"}
    assert await rows(gone.world, "SELECT state, done FROM tasks") == [("SUCCEEDED", 2)]


@pytest.mark.parametrize(
    ("language", "path"),
    [
        ("en", "Restored (2030-01-01)"),
        ("de-AT", "Wiederhergestellt (2030-01-01)"),
        ("cy", "Restored (2030-01-01)"),
    ],
)
async def test_it_comes_into_one_new_folder(gone: Client, language: str, path: str) -> None:
    assert (await change(gone, language=language))[1] == []
    for letter in ("c", "b"):
        start = "2030-01-01T00:02:00Z" if letter == "c" else TIMES["start"]
        assert (await span(gone, start=start, place="NEW_MAILBOX"))["errors"] == []
        assert await tasks.run_next_task(gone.world)
    assert await places(gone) == {"b": path, "c": path}


async def test_chunks_go_on_until_nothing_fits(
    gone: Client, world: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resolvers.messages.deleted_messages.MESSAGES_PER_STEP", 1)
    async with world.write_session() as session:
        await (await session.connection()).execute(text("UPDATE users SET quota = 300"))
    assert (await span(gone))["errors"] == []
    assert await tasks.run_next_task(world)
    ((state, done, error),) = await rows(world, "SELECT state, done, error FROM tasks")
    assert (state, done) == ("FAILED", 1)
    assert "of 300 bytes are in use" in error
    assert await places(gone) == {"b": "Kept/Here"}
    async with world.write_session() as session:
        await (await session.connection()).execute(text("UPDATE users SET quota = NULL"))


async def test_a_time_has_a_beginning_and_an_end(gone: Client) -> None:
    (error,) = (await span(gone, end=TIMES["start"]))["errors"]
    assert (error["code"], error["path"], error["constraint"]) == ("VALIDATION", ["end"], "range")
    done = await span(gone, options={"validateOnly": True})
    assert done["errors"] == []
    assert await rows(gone.world, "SELECT id FROM tasks") == []


# whose


async def test_others_see_and_change_nothing(
    gone: Client, bob: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    key = (await page(gone))["nodes"][0]["id"]
    strangers = [bob, await make_domain_admin(world, http, "unlicensed")]
    for client in strangers:
        assert (await client("query ($id: ID!) { node(id: $id) { id } }", id=key))["node"] is None
        listed = "query ($u: UserRef) { user(by: $u) { archivedMessages { totalCount } } }"
        seen = (await client(listed, u={"id": id_of(gone)}))["user"]
        assert seen is None or seen["archivedMessages"]["totalCount"] == 0
        done = await run(client, "archivedMessageRestore", BACK, ids=[key])
        assert [error["code"] for error in done["errors"]] == ["NOT_FOUND"]
        done = await span(client, user={"id": id_of(gone)})
        assert done["errors"][0]["code"] in ("NOT_FOUND", "FORBIDDEN")
        path = f"/rest/archive/{key}/message.eml"
        assert (await http.get(path, headers=client.headers)).status_code == 404
    assert letters(await page(gone)) == "cba"
    assert await rows(world, "SELECT id FROM tasks") == []


async def test_administrators_see_records_and_have_them_restored(
    gone: Client, world: Environment, http: httpx.AsyncClient, root: Client
) -> None:
    permissions = [AdminPermission.LOGIN_AS]
    chief = await make_domain_admin(world, http, "chief", permissions)
    for client in (chief, await make_client(world, http, "over", role=Role.ADMIN)):
        listed = "query ($u: UserRef) { user(by: $u) { archivedMessages { nodes { id %s } } } }"
        seen = await client(listed % "size", u={"id": id_of(gone)})
        assert len(seen["user"]["archivedMessages"]["nodes"]) == 3
        answer = await client.raw(listed % "subject", u={"id": id_of(gone)})
        assert {error["extensions"]["code"] for error in answer["errors"]} == {"FORBIDDEN"}
        answer = await client.raw(listed % "sourceUrl", u={"id": id_of(gone)})
        assert {error["extensions"]["code"] for error in answer["errors"]} == {"FORBIDDEN"}
        key = seen["user"]["archivedMessages"]["nodes"][0]["id"]
        path = f"/rest/archive/{key}/message.eml"
        assert (await http.get(path, headers=client.headers)).status_code == 403
    assert (await span(chief, user={"id": id_of(gone)}))["errors"] == []
    assert await tasks.run_next_task(world)
    assert await places(gone) == {"b": "Kept/Here", "c": "INBOX"}
    (entry,) = (await root('{ adminLog(mutation: "archiveRestore") { nodes { actor } } }'))[
        "adminLog"
    ]["nodes"]
    assert entry["actor"] == "chief"


async def test_the_bytes_are_there_by_a_signed_address(gone: Client, clock: Clock) -> None:
    answer = await gone("{ viewer { user { archivedMessages { nodes { sourceUrl } } } } }")
    url = answer["viewer"]["user"]["archivedMessages"]["nodes"][0]["sourceUrl"]
    got = await gone.http.get(url)
    assert (got.status_code, got.headers["content-type"]) == (200, "message/rfc822")
    assert b"Subject: c\r\n" in got.content
    part = await gone.http.get(url, headers={"Range": "bytes=0-4"})
    assert (part.status_code, part.content) == (206, got.content[:5])
    await back(gone, "c")
    assert (await gone.http.get(url)).status_code == 404
    clock.tick(minutes=21)
    assert (await gone.http.get(url)).status_code == 401


# cost


async def test_many_lists_are_one_statement_by_its_index(
    gone: Client, world: Environment, http: httpx.AsyncClient, statements: list[str]
) -> None:
    over = await make_client(world, http, "over", role=Role.ADMIN)
    document = "{ users(first: 50) { nodes { archivedMessages { nodes { id size } } } } }"

    async def asked() -> int:
        del statements[:]
        await over(document)
        return len(statements)

    await asked()
    few = await asked()
    for n in range(20):
        await make_client(world, http, f"u{n:02}")
    assert await asked() == few
    with explained(world) as plans:
        own = "{ viewer { user { archivedMessages(first: 2) { nodes { id } } } } }"
        plan = await plans.of(gone(own), "messages")
    if world.database.dialect == "sqlite":
        assert "messages_archived" in plan, plan
        assert "TEMP B-TREE" not in plan, plan


async def test_chunks_cost_the_same_however_many(
    ada: Client, statements: list[str], clock: Clock
) -> None:
    counts = []
    for many in (1, 20):
        for n in range(many):
            await receive(ada, f"{many} {n}")
        await call(ada, "messageDelete", select={"mailbox": {"path": "INBOX"}})
        keys = [node["id"] for node in (await page(ada))["nodes"]]
        del statements[:]
        assert (await run(ada, "archivedMessageRestore", BACK, ids=keys))["errors"] == []
        counts.append(len(statements))
        clock.tick(days=1)
    assert counts[0] == counts[1]
