"""The text index: filled, made anew and merged by tasks, and looked into by administrators."""

from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text

from graph.types import global_ids
from mail.search import index_worker
from models.events.journal import PLATFORM
from models.runtime.environment import Environment
from models.search import text_index
from models.users.roles import Role
from resolvers.admin import tasks
from resolvers.admin.task_steps import TaskStepResult
from resolvers.search import index_inspection, index_tasks
from tests.conftest import Client, Clock, context, make_client, raw_message, receive
from tests.support.operations.mailbox_operations import run_mailbox_mutation
from tests.support.operations.search_operations import search_subjects
from tests.support.stores.counter_check import examine, rows

STATUS = "{ searchIndexStatus { enabled engine documents size pending lastOptimizedAt } }"
TASK = "indexed task { id kind total }"
EXPAND = """query ($filter: MessageFilter!, $users: UserSelection) {
  searchExpand(filter: $filter, users: $users) { original expanded terms native } }"""
LOOKUP = """query ($filter: MessageFilter!, $users: UserSelection, $first: Int, $after: String) {
  searchLookup(filter: $filter, users: $users, first: $first, after: $after) {
    nodes { score definite message { id mailbox { guid } uid } } totalCount
    pageInfo { endCursor hasNextPage } } }"""
ADA = {"usernames": ["ada"]}
ALL = {"all": True}


@pytest.fixture
async def post(ada: Client, bob: Client, clock: Clock) -> Client:
    """Letters of two accounts, nothing of which is indexed."""
    for nth in range(3):
        await receive(ada, raw_message(f"Letter {nth}", body=f"the duck {nth} quacks"))
        clock.tick(hours=1)
    await receive(bob, raw_message("Secret", body="the duck of bob"))
    return ada


async def status(root: Client) -> Any:
    return (await root(STATUS))["searchIndexStatus"]


async def worked(world: Environment) -> list[tuple[Any, ...]]:
    """Do what is queued; the tasks as they are then."""
    while await tasks.run_next_task(world):
        pass
    return await rows(world, "SELECT kind, state, done, total FROM tasks ORDER BY id")


async def indexed(world: Environment) -> set[int]:
    listed = text_index.index_rows(world.database.dialect)
    (key,) = listed.c
    return {row[0] for row in await rows(world, f"SELECT {key.name} FROM {listed.name}")}  # noqa: S608


async def filled(world: Environment) -> None:
    while await index_worker.index_next_batch(world):
        pass


async def letters(world: Environment) -> set[int]:
    return {row[0] for row in await rows(world, "SELECT id FROM messages")}


async def harm(world: Environment) -> None:
    """Let the index lose all, and know nothing of it."""
    async with world.database.engine.begin() as connection:
        for statement in (*text_index.DROP_TABLE, *text_index.CREATE_TABLE[world.database.dialect]):
            await connection.execute(text(statement))


async def test_how_the_index_is(post: Client, root: Client, world: Environment) -> None:
    before = await status(root)
    engine = text_index.ENGINE_NAMES[world.database.dialect]
    assert (before["enabled"], before["engine"], before["lastOptimizedAt"]) == (True, engine, None)
    assert (before["documents"], before["pending"]) == (0, 4)
    await filled(world)
    now = await status(root)
    assert (now["documents"], now["pending"]) == (4, 0)
    assert int(now["size"]) >= int(before["size"]) > 0
    done = await run_mailbox_mutation(root, "searchIndexOptimize", TASK)
    assert (done["errors"], done["task"]["kind"]) == ([], "SEARCH_INDEX_OPTIMIZE")
    assert (await worked(world))[0][1] == "SUCCEEDED"
    assert (await status(root))["lastOptimizedAt"] == post.world.now().isoformat().replace(
        "+00:00", "Z"
    )
    assert await search_subjects(post, "duck -1") == ["Letter 2", "Letter 0"]


async def test_what_waits_is_indexed_at_once_or_by_a_task(
    post: Client, root: Client, world: Environment
) -> None:
    done = await run_mailbox_mutation(
        root, "searchIndexBuild", TASK, users=ADA, mailboxMasks=["Work*"]
    )
    assert (done["indexed"], done["task"], done["errors"]) == (0, None, [])
    most = await run_mailbox_mutation(
        root, "searchIndexBuild", TASK, users=ADA, mailboxMasks=["*"], maxRecent=2
    )
    assert most["indexed"] == 0
    tried = await run_mailbox_mutation(
        root,
        "searchIndexBuild",
        TASK,
        users=ADA,
        mailboxMasks=["*"],
        options={"validateOnly": True},
    )
    assert tried["errors"] == []
    assert await indexed(world) == set()
    done = await run_mailbox_mutation(
        root, "searchIndexBuild", TASK, users=ADA, mailboxMasks=["INBOX"], maxRecent=3
    )
    assert done["indexed"] == 3
    assert (await status(root))["pending"] == 1
    queued = await run_mailbox_mutation(
        root, "searchIndexBuild", TASK, users=ALL, mailboxMasks=["*"], queue=True
    )
    assert (queued["indexed"], queued["task"]["total"]) == (None, 1)
    assert await worked(world) == [("SEARCH_INDEX_BUILD", "SUCCEEDED", 1, 1)]
    assert await indexed(world) == await letters(world)
    assert await search_subjects(post, "duck") == ["Letter 2", "Letter 1", "Letter 0"]
    await examine(world)


async def test_what_is_asked_of_the_index_is_checked(
    root: Client, ada: Client, world: Environment
) -> None:
    for given, code in (
        ({"users": {"usernames": ["nobody"]}, "mailboxMasks": ["*"]}, "NOT_FOUND"),
        ({"users": ADA, "mailboxMasks": ["x" * 2000]}, "VALIDATION"),
        ({"users": ADA, "mailboxMasks": ["*"] * 1000}, "VALIDATION"),
        ({"users": ADA, "mailboxMasks": ["*"], "maxRecent": -1}, "VALIDATION"),
    ):
        answer = await run_mailbox_mutation(root, "searchIndexBuild", TASK, **given)
        assert [error["code"] for error in answer["errors"]] == [code], given
    assert await rows(world, "SELECT id FROM tasks") == []
    assert ada.user.id


@pytest.mark.parametrize("users", [ALL, ADA], ids=["all", "some"])
async def test_an_index_is_made_anew(
    post: Client, root: Client, bob: Client, users: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = post.world
    monkeypatch.setattr(index_tasks, "BATCH_SIZE", 2)  # several units
    await filled(world)
    await harm(world)
    assert await search_subjects(post, "duck") == []
    answer = await run_mailbox_mutation(root, "searchIndexRebuild", TASK, users=users)
    whole = users is ALL or world.database.dialect == "sqlite"
    many = 4 if whole else 3
    assert (answer["errors"], answer["task"]["total"]) == ([], many)
    assert await worked(world) == [("SEARCH_INDEX_REBUILD", "SUCCEEDED", many, many)]
    assert await search_subjects(post, "duck") == ["Letter 2", "Letter 1", "Letter 0"]
    assert await search_subjects(bob, "duck") == (["Secret"] if whole else [])
    if whole:
        assert await indexed(world) == await letters(world)
    await run_mailbox_mutation(root, "searchIndexRebuild", TASK, users=users)
    await worked(world)  # of an index that is whole
    assert await search_subjects(post, '"duck 1"') == ["Letter 1"]
    assert await search_subjects(post, "quacks") == ["Letter 2", "Letter 1", "Letter 0"]


async def test_another_number_of_letters_holds_for_what_is_made_anew(
    post: Client, root: Client, world: Environment
) -> None:
    await receive(post, raw_message("Long", body="filler " * 50 + "needle"))
    short = replace(world, options=replace(world.options, search_text=100))
    while await index_worker.index_next_batch(short):
        pass
    assert await search_subjects(post, "needle") == []
    await run_mailbox_mutation(root, "searchIndexRebuild", TASK, users=ADA)
    await worked(world)
    assert await search_subjects(post, "needle") == ["Long"]
    await run_mailbox_mutation(root, "searchIndexRebuild", TASK, users=ADA)
    await worked(short)
    assert await search_subjects(post, "needle") == []
    assert await search_subjects(post, "long") == ["Long"]


async def test_searches_and_drafts_go_on_while_an_index_is_made(
    post: Client, root: Client, world: Environment
) -> None:
    draft = await _draft(post, text="the first goose")
    await filled(world)
    ctx, kind, order = context(root), tasks.TASK_KINDS[index_tasks.REBUILD], {"ids": None}

    async def unit(checkpoint: dict[str, Any]) -> TaskStepResult:
        held = await kind.plan(ctx, order, checkpoint)
        async with ctx.write_session(PLATFORM) as session:
            return await kind.run_step(ctx, session, order, checkpoint, held)

    step = await unit({})
    assert (step.done_count, step.has_more) == (5, True)  # all that is there is in the new one
    assert await search_subjects(post, "quacks") == ["Letter 2", "Letter 1", "Letter 0"]
    await _draft(post, draft, text="the second swan")
    await filled(world)
    await receive(post, raw_message("New", body="a new duck"))
    held = await kind.plan(ctx, order, step.checkpoint)
    await receive(post, raw_message("Newer", body="a newer duck"))
    await filled(world)
    async with ctx.write_session(PLATFORM) as session:
        step = await kind.run_step(ctx, session, order, step.checkpoint, held)
    assert (step.done_count, step.has_more) == (1, True)
    last = await unit({"at": 1 << 62})
    assert not last.has_more
    assert await indexed(world) < await letters(world)
    for _ in range(2):  # what came meanwhile waits, and is indexed then
        assert await search_subjects(post, "duck") == [
            "Newer",
            "New",
            "Letter 2",
            "Letter 1",
            "Letter 0",
        ]
        assert await search_subjects(post, "goose") == []
        assert await search_subjects(post, "swan") == ["Draft"]
        await filled(world)
    assert await indexed(world) == await letters(world)


async def _draft(client: Client, key: str | None = None, **given: Any) -> str:
    document = """mutation ($input: MessageUploadInput!) { messageUpload(input: $input) {
      message { id } errors { code message } } }"""
    given |= {"mailbox": {"specialUse": "DRAFTS"}, "draft": True, "subject": "Draft"}
    given |= {"replacePrevious": {"id": key}} if key else {}
    made = (await client(document, input=given))["messageUpload"]
    assert made["errors"] == []
    return str(made["message"]["id"])


async def test_an_index_is_made_anew_once_at_a_time(
    post: Client, root: Client, world: Environment
) -> None:
    assert post.user.id
    first = await run_mailbox_mutation(root, "searchIndexRebuild", TASK, users=ALL)
    again = await run_mailbox_mutation(root, "searchIndexRebuild", TASK, users=ALL)
    assert [error["code"] for error in again["errors"]] == ["CONFLICT"]
    cancel = "mutation ($input: TaskCancelInput!) { taskCancel(input: $input) { errors { code } } }"
    await root(cancel, input={"ids": [first["task"]["id"]]})
    assert (await run_mailbox_mutation(root, "searchIndexRebuild", TASK, users=ALL))["errors"] == []
    states = [row[1] for row in await worked(world)]
    assert states == ["CANCELLED", "SUCCEEDED"]


async def test_what_has_gone_leaves_the_index(
    post: Client, root: Client, world: Environment
) -> None:
    await filled(world)
    async with world.database.engine.begin() as connection:
        await connection.execute(
            text("DELETE FROM message_blobs WHERE message_id IN (SELECT id FROM messages)")
        )
        await connection.execute(text(f"DELETE FROM messages WHERE user_id = {post.user.id}"))  # noqa: S608
    assert (await status(root))["documents"] == 4
    if world.database.dialect == "postgresql":
        await run_mailbox_mutation(root, "searchIndexOptimize", TASK)
    else:
        await run_mailbox_mutation(root, "searchIndexRebuild", TASK, users=ALL)
    await worked(world)
    assert await indexed(world) == await letters(world)
    assert (await status(root))["documents"] == 1


async def test_a_text_is_divided_into_words(root: Client) -> None:
    asked = "query ($text: String!) { searchTokenize(text: $text) { tokens { text position } } }"
    found = (await root(asked, text="Grüße, O'Reilly! 北京大"))["searchTokenize"]["tokens"]
    assert [one["text"] for one in found] == ["grusse", "o", "reilly", "北京", "京大", "大"]
    assert [one["position"] for one in found] == [1, 2, 3, 4, 5, 6]
    assert (await root(asked, text=""))["searchTokenize"]["tokens"] == []
    refused = await root.raw(asked, text="x" * (index_inspection.MAX_TEXT_LENGTH + 1))
    assert refused["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_a_filter_is_shown_as_the_index_is_asked(ada: Client, root: Client) -> None:
    asked = {"and": [{"query": '"the Dück" pon* -swan'}, {"seen": False}]}
    found = (await root(EXPAND, filter=asked, users=ADA))["searchExpand"]
    assert found["original"] == asked
    assert found["expanded"] == {
        "and": [
            {"words": ["the", "duck"]},
            {"words": ["pon"], "prefix": True},
            {"not": {"words": ["swan"]}},
        ]
    }
    assert found["terms"] == ["the", "duck", "pon*", "swan"]
    assert text_index.user_token(ada.user.id) in found["native"]
    either = {"or": [{"query": "a"}, {"query": "b"}]}
    found = (await root(EXPAND, filter=either, users=ADA))["searchExpand"]
    assert found["expanded"] == {"or": [{"words": ["a"]}, {"words": ["b"]}]}
    found = (await root(EXPAND, filter={"subject": "x"}, users=ADA))["searchExpand"]
    assert (found["expanded"], found["terms"], found["native"]) == ({}, [], None)


async def test_the_index_alone_is_asked(post: Client, root: Client, world: Environment) -> None:
    empty = (await root(LOOKUP, filter={"query": "duck"}, users=ADA))["searchLookup"]
    assert (empty["nodes"], empty["totalCount"]) == ([], 0)  # all of it waits
    await filled(world)
    asked = {"filter": {"query": "duck", "seen": False}, "users": ADA}
    one = (await root(LOOKUP, first=2, **asked))["searchLookup"]
    assert (one["totalCount"], one["pageInfo"]["hasNextPage"]) == (3, True)
    assert [hit["message"]["uid"] for hit in one["nodes"]] == [3, 2]
    assert all(hit["score"] > 0 and not hit["definite"] for hit in one["nodes"])
    two = (await root(LOOKUP, first=2, after=one["pageInfo"]["endCursor"], **asked))["searchLookup"]
    assert [hit["message"]["uid"] for hit in two["nodes"]] == [1]
    assert not two["pageInfo"]["hasNextPage"]
    gone = [one["nodes"][0]["message"]["id"]]
    assert (
        await run_mailbox_mutation(post, "messageDelete", "deletedCount", select={"ids": gone})
    )["errors"] == []
    many = (await root(LOOKUP, filter={"query": "duck"}, users=ALL))["searchLookup"]
    assert [hit["message"] and hit["message"]["uid"] for hit in many["nodes"]] == [
        1, None, 2, 1,
    ]  # fmt: skip
    assert all(hit["definite"] for hit in many["nodes"])
    refused = await root.raw(LOOKUP, filter={"query": "-duck"}, users=ADA)
    assert refused["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
    other = await root.raw(
        LOOKUP, filter={"query": "quacks"}, users=ADA, after=one["pageInfo"]["endCursor"]
    )
    assert other["errors"][0]["extensions"]["code"] == "BAD_CURSOR"


async def test_many_hits_take_as_many_statements_as_few(
    root: Client, ada: Client, world: Environment, statements: list[str]
) -> None:
    counts = []
    for many in (1, 19):
        for nth in range(many):
            await receive(ada, raw_message(f"{many} {nth}", body="duck"))
        await filled(world)
        await root(LOOKUP, filter={"query": "duck"}, users=ADA)
        del statements[:]
        found = await root(LOOKUP, filter={"query": "duck"}, users=ADA)
        counts.append(len(statements))
    assert found["searchLookup"]["totalCount"] == 20
    assert counts[0] == counts[1]


async def test_the_index_is_for_administrators(
    post: Client, bob: Client, world: Environment, http: Any
) -> None:
    await filled(world)
    boss = await make_client(world, http, "boss", role=Role.DOMAIN_ADMIN)
    tokenize = '{ searchTokenize(text: "a") { tokens { text } } }'
    for client in (bob, boss):
        asked: tuple[tuple[str, dict[str, Any]], ...] = (
            (STATUS, {}),
            (EXPAND, {"filter": {"query": "duck"}, "users": ADA}),
            (LOOKUP, {"filter": {"query": "duck"}, "users": ADA}),
            (tokenize, {}),
        )
        for document, given in asked:
            answer = await client.raw(document, **given)
            assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
        orders: tuple[tuple[str, dict[str, Any]], ...] = (
            ("searchIndexBuild", {"users": ADA, "mailboxMasks": ["*"]}),
            ("searchIndexRebuild", {"users": ADA}),
            ("searchIndexOptimize", {}),
        )
        for name, given in orders:
            answer = await run_mailbox_mutation(client, name, TASK, **given)
            assert [error["code"] for error in answer["errors"]] == ["FORBIDDEN"]
    assert await rows(world, "SELECT id FROM tasks") == []
    admin = await make_client(world, http, "adam", role=Role.ADMIN)
    shown = LOOKUP.replace("} uid", "} uid subject")
    answer = await admin.raw(shown, filter={"query": "duck"}, users=ADA)
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert global_ids.encode("User", post.user.id)
