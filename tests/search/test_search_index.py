"""Test the text index: build, rebuild and optimize as tasks, and inspection by administrators."""

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
from tests.conftest import (
    GraphQLClient,
    ManualClock,
    client_context,
    deliver_to,
    make_client,
    raw_message,
)
from tests.support.operations.mailbox_operations import run_mailbox_mutation
from tests.support.operations.search_operations import search_subjects
from tests.support.stores.counter_check import assert_store_consistent, select_rows

STATUS_QUERY = "{ searchIndexStatus { enabled engine documents size pending lastOptimizedAt } }"
PAYLOAD_FIELDS = "indexedCount task { id kind totalCount }"
EXPAND_QUERY = """query ($filter: MessageFilter!, $users: UserSelection) {
  searchDiagnostics {
    expansion(filter: $filter, users: $users) { original expanded terms native } } }"""
LOOKUP = """query ($filter: MessageFilter!, $users: UserSelection, $first: Int, $after: String) {
  searchDiagnostics { hits(filter: $filter, users: $users, first: $first, after: $after) {
    nodes { score exact message { id mailbox { objectId } imap { uid } } } totalCount
    pageInfo { endCursor hasNextPage } } } }"""
ADA = {"usernames": ["ada"]}
ALL_USERS = {"all": True}


@pytest.fixture
async def ada_with_messages(
    ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> GraphQLClient:
    """Three messages of ada and one of bob. None is indexed."""
    for nth in range(3):
        await deliver_to(ada, raw_message(f"Letter {nth}", body=f"the duck {nth} quacks"))
        clock.tick(hours=1)
    await deliver_to(bob, raw_message("Secret", body="the duck of bob"))
    return ada


async def load_status(root: GraphQLClient) -> Any:
    return (await root(STATUS_QUERY))["searchIndexStatus"]


async def run_tasks(environment: Environment) -> list[tuple[Any, ...]]:
    """Run all queued tasks. Return their rows."""
    while await tasks.run_next_task(environment):
        pass
    return await select_rows(
        environment, "SELECT kind, state, done_count, total_count FROM tasks ORDER BY id"
    )


async def load_indexed_ids(environment: Environment) -> set[int]:
    index_table = text_index.indexed_ids_table(environment.database.dialect)
    (id_column,) = index_table.c
    statement = f"SELECT {id_column.name} FROM {index_table.name}"  # noqa: S608
    return {row[0] for row in await select_rows(environment, statement)}


async def index_all(environment: Environment) -> None:
    while await index_worker.index_next_batch_and_record_contacts(environment):
        pass


async def load_message_ids(environment: Environment) -> set[int]:
    return {row[0] for row in await select_rows(environment, "SELECT id FROM messages")}


async def empty_index(environment: Environment) -> None:
    """Empty the text index. The messages stay marked as indexed."""
    async with environment.database.engine.begin() as connection:
        for statement in (
            *text_index.DROP_TABLE,
            *text_index.CREATE_TABLE[environment.database.dialect],
        ):
            await connection.execute(text(statement))


async def test_index_status_before_and_after_indexing(
    ada_with_messages: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    before = await load_status(root)
    engine = text_index.ENGINE_NAMES[environment.database.dialect]
    assert (before["enabled"], before["engine"], before["lastOptimizedAt"]) == (True, engine, None)
    assert (before["documents"], before["pending"]) == (0, 4)
    await index_all(environment)
    after = await load_status(root)
    assert (after["documents"], after["pending"]) == (4, 0)
    assert int(after["size"]) >= int(before["size"]) > 0
    answer = await run_mailbox_mutation(root, "searchIndexOptimize", PAYLOAD_FIELDS)
    assert (answer["errors"], answer["task"]["kind"]) == ([], "SEARCH_INDEX_OPTIMIZE")
    assert (await run_tasks(environment))[0][1] == "SUCCEEDED"
    assert (await load_status(root))[
        "lastOptimizedAt"
    ] == ada_with_messages.environment.now().isoformat().replace("+00:00", "Z")
    assert await search_subjects(ada_with_messages, "duck -1") == ["Letter 2", "Letter 0"]


async def test_index_build_runs_at_once_or_as_task(
    ada_with_messages: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    answer = await run_mailbox_mutation(
        root, "searchIndexBuild", PAYLOAD_FIELDS, users=ADA, mailboxPatterns=["Work*"]
    )
    assert (answer["indexedCount"], answer["task"], answer["errors"]) == (0, None, [])
    limited = await run_mailbox_mutation(
        root, "searchIndexBuild", PAYLOAD_FIELDS, users=ADA, mailboxPatterns=["*"], maxRecent=2
    )
    assert limited["indexedCount"] == 0
    validated = await run_mailbox_mutation(
        root,
        "searchIndexBuild",
        PAYLOAD_FIELDS,
        users=ADA,
        mailboxPatterns=["*"],
        options={"validateOnly": True},
    )
    assert validated["errors"] == []
    assert await load_indexed_ids(environment) == set()
    answer = await run_mailbox_mutation(
        root, "searchIndexBuild", PAYLOAD_FIELDS, users=ADA, mailboxPatterns=["INBOX"], maxRecent=3
    )
    assert answer["indexedCount"] == 3
    assert (await load_status(root))["pending"] == 1
    queued = await run_mailbox_mutation(
        root,
        "searchIndexBuild",
        PAYLOAD_FIELDS,
        users=ALL_USERS,
        mailboxPatterns=["*"],
        background=True,
    )
    assert (queued["indexedCount"], queued["task"]["totalCount"]) == (None, 1)
    assert await run_tasks(environment) == [("SEARCH_INDEX_BUILD", "SUCCEEDED", 1, 1)]
    assert await load_indexed_ids(environment) == await load_message_ids(environment)
    assert await search_subjects(ada_with_messages, "duck") == ["Letter 2", "Letter 1", "Letter 0"]
    await assert_store_consistent(environment)


async def test_invalid_index_build_is_refused(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment
) -> None:
    for arguments, code in (
        ({"users": {"usernames": ["nobody"]}, "mailboxPatterns": ["*"]}, "NOT_FOUND"),
        ({"users": ADA, "mailboxPatterns": ["x" * 2000]}, "VALIDATION"),
        ({"users": ADA, "mailboxPatterns": ["*"] * 1000}, "VALIDATION"),
        ({"users": ADA, "mailboxPatterns": ["*"], "maxRecent": -1}, "VALIDATION"),
    ):
        answer = await run_mailbox_mutation(root, "searchIndexBuild", PAYLOAD_FIELDS, **arguments)
        assert [error["code"] for error in answer["errors"]] == [code], arguments
    assert await select_rows(environment, "SELECT id FROM tasks") == []
    assert ada.user.id


@pytest.mark.parametrize("users", [ALL_USERS, ADA], ids=["all", "some"])
async def test_index_rebuild_restores_lost_entries(
    ada_with_messages: GraphQLClient,
    root: GraphQLClient,
    bob: GraphQLClient,
    users: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    environment = ada_with_messages.environment
    monkeypatch.setattr(index_tasks, "BATCH_SIZE", 2)  # several task steps
    await index_all(environment)
    await empty_index(environment)
    assert await search_subjects(ada_with_messages, "duck") == []
    answer = await run_mailbox_mutation(root, "searchIndexRebuild", PAYLOAD_FIELDS, users=users)
    rebuilds_all = users is ALL_USERS or environment.database.dialect == "sqlite"
    message_count = 4 if rebuilds_all else 3
    assert (answer["errors"], answer["task"]["totalCount"]) == ([], message_count)
    assert await run_tasks(environment) == [
        ("SEARCH_INDEX_REBUILD", "SUCCEEDED", message_count, message_count)
    ]
    assert await search_subjects(ada_with_messages, "duck") == ["Letter 2", "Letter 1", "Letter 0"]
    assert await search_subjects(bob, "duck") == (["Secret"] if rebuilds_all else [])
    if rebuilds_all:
        assert await load_indexed_ids(environment) == await load_message_ids(environment)
    await run_mailbox_mutation(root, "searchIndexRebuild", PAYLOAD_FIELDS, users=users)
    await run_tasks(environment)  # rebuild of a complete index
    assert await search_subjects(ada_with_messages, '"duck 1"') == ["Letter 1"]
    assert await search_subjects(ada_with_messages, "quacks") == [
        "Letter 2",
        "Letter 1",
        "Letter 0",
    ]


async def test_rebuild_applies_changed_text_limit(
    ada_with_messages: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    await deliver_to(ada_with_messages, raw_message("Long", body="filler " * 50 + "needle"))
    short_limit = replace(
        environment, options=replace(environment.options, search_max_characters=100)
    )
    while await index_worker.index_next_batch_and_record_contacts(short_limit):
        pass
    assert await search_subjects(ada_with_messages, "needle") == []
    await run_mailbox_mutation(root, "searchIndexRebuild", PAYLOAD_FIELDS, users=ADA)
    await run_tasks(environment)
    assert await search_subjects(ada_with_messages, "needle") == ["Long"]
    await run_mailbox_mutation(root, "searchIndexRebuild", PAYLOAD_FIELDS, users=ADA)
    await run_tasks(short_limit)
    assert await search_subjects(ada_with_messages, "needle") == []
    assert await search_subjects(ada_with_messages, "long") == ["Long"]


async def test_search_and_drafts_work_during_rebuild(
    ada_with_messages: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    draft_id = await save_draft(ada_with_messages, text="the first goose")
    await index_all(environment)
    ctx = client_context(root)
    rebuild = tasks.TASK_RUNNERS[index_tasks.REBUILD]
    task_input = {"ids": None}

    async def run_step(checkpoint: dict[str, Any]) -> TaskStepResult:
        plan = await rebuild.plan(ctx, task_input, checkpoint)
        async with ctx.write_session(PLATFORM) as session:
            return await rebuild.run_step(ctx, session, task_input, checkpoint, plan)

    step = await run_step({})
    assert (step.done_count, step.has_more) == (5, True)  # the new index has all messages
    assert await search_subjects(ada_with_messages, "quacks") == [
        "Letter 2",
        "Letter 1",
        "Letter 0",
    ]
    await save_draft(ada_with_messages, draft_id, text="the second swan")
    await index_all(environment)
    await deliver_to(ada_with_messages, raw_message("New", body="a new duck"))
    plan = await rebuild.plan(ctx, task_input, step.checkpoint)
    await deliver_to(ada_with_messages, raw_message("Newer", body="a newer duck"))
    await index_all(environment)
    async with ctx.write_session(PLATFORM) as session:
        step = await rebuild.run_step(ctx, session, task_input, step.checkpoint, plan)
    assert (step.done_count, step.has_more) == (1, True)
    last_step = await run_step({"at": 1 << 62})
    assert not last_step.has_more
    assert await load_indexed_ids(environment) < await load_message_ids(environment)
    for _ in range(2):  # New messages are found before and after they are indexed.
        assert await search_subjects(ada_with_messages, "duck") == [
            "Newer",
            "New",
            "Letter 2",
            "Letter 1",
            "Letter 0",
        ]
        assert await search_subjects(ada_with_messages, "goose") == []
        assert await search_subjects(ada_with_messages, "swan") == ["Draft"]
        await index_all(environment)
    assert await load_indexed_ids(environment) == await load_message_ids(environment)


async def save_draft(client: GraphQLClient, draft_id: str | None = None, **fields: Any) -> str:
    document = """mutation ($input: DraftSaveInput!) { draftSave(input: $input) {
      message { id } errors { code message } } }"""
    draft_input = {"set": {"subject": "Draft", **fields}}
    draft_input |= {"draft": {"id": draft_id}} if draft_id else {}
    saved = (await client(document, input=draft_input))["draftSave"]
    assert saved["errors"] == []
    return str(saved["message"]["id"])


@pytest.mark.usefixtures("ada_with_messages")
async def test_index_of_all_users_leaves_out_root_for_an_admin(
    root: GraphQLClient, environment: Environment
) -> None:
    boss = await make_client(environment, root.http, "boss", role=Role.ADMIN)
    chief = await make_client(environment, root.http, "chief", role=Role.ROOT)
    await deliver_to(chief, raw_message("Plan", body="the duck of the chief"))
    build_input = {"users": ALL_USERS, "mailboxPatterns": ["*"]}
    queued = await run_mailbox_mutation(
        boss, "searchIndexBuild", PAYLOAD_FIELDS, **build_input, background=True
    )
    assert (queued["errors"], queued["task"]["totalCount"]) == ([], 4)
    built = await run_mailbox_mutation(boss, "searchIndexBuild", PAYLOAD_FIELDS, **build_input)
    assert (built["errors"], built["indexedCount"]) == ([], 4)
    assert (await load_status(root))["pending"] == 1
    built = await run_mailbox_mutation(root, "searchIndexBuild", PAYLOAD_FIELDS, **build_input)
    assert built["indexedCount"] == 1
    rebuilt = await run_mailbox_mutation(
        boss, "searchIndexRebuild", PAYLOAD_FIELDS, users=ALL_USERS
    )
    message_count = 5 if environment.database.dialect == "sqlite" else 4
    assert (rebuilt["errors"], rebuilt["task"]["totalCount"]) == ([], message_count)
    assert await run_tasks(environment) == [
        ("SEARCH_INDEX_BUILD", "SUCCEEDED", 0, 4),
        ("SEARCH_INDEX_REBUILD", "SUCCEEDED", message_count, message_count),
    ]
    assert await load_indexed_ids(environment) == await load_message_ids(environment)
    assert await search_subjects(chief, "duck") == ["Plan"]


async def test_second_rebuild_at_the_same_time_is_refused(
    ada_with_messages: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    assert ada_with_messages.user.id
    first = await run_mailbox_mutation(root, "searchIndexRebuild", PAYLOAD_FIELDS, users=ALL_USERS)
    second = await run_mailbox_mutation(root, "searchIndexRebuild", PAYLOAD_FIELDS, users=ALL_USERS)
    assert [error["code"] for error in second["errors"]] == ["CONFLICT"]
    cancel = "mutation ($input: TaskCancelInput!) { taskCancel(input: $input) { errors { code } } }"
    await root(cancel, input={"tasks": [{"id": first["task"]["id"]}]})
    assert (
        await run_mailbox_mutation(root, "searchIndexRebuild", PAYLOAD_FIELDS, users=ALL_USERS)
    )["errors"] == []
    states = [row[1] for row in await run_tasks(environment)]
    assert states == ["CANCELLED", "SUCCEEDED"]


async def test_deleted_messages_are_removed_from_index(
    ada_with_messages: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    await index_all(environment)
    async with environment.database.engine.begin() as connection:
        await connection.execute(
            text("DELETE FROM message_blobs WHERE message_id IN (SELECT id FROM messages)")
        )
        user_id = ada_with_messages.user.id
        await connection.execute(text(f"DELETE FROM messages WHERE user_id = {user_id}"))  # noqa: S608
    assert (await load_status(root))["documents"] == 4
    if environment.database.dialect == "postgresql":
        await run_mailbox_mutation(root, "searchIndexOptimize", PAYLOAD_FIELDS)
    else:
        await run_mailbox_mutation(root, "searchIndexRebuild", PAYLOAD_FIELDS, users=ALL_USERS)
    await run_tasks(environment)
    assert await load_indexed_ids(environment) == await load_message_ids(environment)
    assert (await load_status(root))["documents"] == 1


async def test_text_is_split_into_tokens(root: GraphQLClient) -> None:
    document = (
        "query ($text: String!) { searchDiagnostics { tokens(text: $text) { text position } } }"
    )
    tokens = (await root(document, text="Grüße, O'Reilly! 北京大"))["searchDiagnostics"]["tokens"]
    assert [token["text"] for token in tokens] == ["grusse", "o", "reilly", "北京", "京大", "大"]
    assert [token["position"] for token in tokens] == [1, 2, 3, 4, 5, 6]
    assert (await root(document, text=""))["searchDiagnostics"]["tokens"] == []
    refused = await root.execute(document, text="x" * (index_inspection.MAX_TEXT_LENGTH + 1))
    assert refused["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"


async def test_search_expand_shows_index_query(ada: GraphQLClient, root: GraphQLClient) -> None:
    filter_ = {"and": [{"query": '"the Dück" pon* -swan'}, {"seen": False}]}
    result = (await root(EXPAND_QUERY, filter=filter_, users=ADA))["searchDiagnostics"]["expansion"]
    assert result["original"] == filter_
    assert result["expanded"] == {
        "and": [
            {"words": ["the", "duck"]},
            {"words": ["pon"], "prefix": True},
            {"not": {"words": ["swan"]}},
        ]
    }
    assert result["terms"] == ["the", "duck", "pon*", "swan"]
    assert text_index.user_token(ada.user.id) in result["native"]
    either = {"or": [{"query": "a"}, {"query": "b"}]}
    result = (await root(EXPAND_QUERY, filter=either, users=ADA))["searchDiagnostics"]["expansion"]
    assert result["expanded"] == {"or": [{"words": ["a"]}, {"words": ["b"]}]}
    result = (await root(EXPAND_QUERY, filter={"subject": "x"}, users=ADA))["searchDiagnostics"][
        "expansion"
    ]
    assert (result["expanded"], result["terms"], result["native"]) == ({}, [], None)


async def test_search_lookup_reads_only_the_index(
    ada_with_messages: GraphQLClient, root: GraphQLClient, environment: Environment
) -> None:
    empty = (await root(LOOKUP, filter={"query": "duck"}, users=ADA))["searchDiagnostics"]["hits"]
    assert (empty["nodes"], empty["totalCount"]) == ([], 0)  # nothing is indexed yet
    await index_all(environment)
    variables = {"filter": {"query": "duck", "seen": False}, "users": ADA}
    first_page = (await root(LOOKUP, first=2, **variables))["searchDiagnostics"]["hits"]
    assert (first_page["totalCount"], first_page["pageInfo"]["hasNextPage"]) == (3, True)
    assert [hit["message"]["imap"]["uid"] for hit in first_page["nodes"]] == [3, 2]
    assert all(hit["score"] > 0 and not hit["exact"] for hit in first_page["nodes"])
    second_page = (
        await root(LOOKUP, first=2, after=first_page["pageInfo"]["endCursor"], **variables)
    )["searchDiagnostics"]["hits"]
    assert [hit["message"]["imap"]["uid"] for hit in second_page["nodes"]] == [1]
    assert not second_page["pageInfo"]["hasNextPage"]
    deleted_ids = [first_page["nodes"][0]["message"]["id"]]
    assert (
        await run_mailbox_mutation(
            ada_with_messages, "messageDelete", "deletedCount", select={"ids": deleted_ids}
        )
    )["errors"] == []
    all_users_page = (await root(LOOKUP, filter={"query": "duck"}, users=ALL_USERS))[
        "searchDiagnostics"
    ]["hits"]
    found_messages = [hit["message"] for hit in all_users_page["nodes"]]
    assert [message and message["imap"]["uid"] for message in found_messages] == [1, None, 2, 1]
    assert all(hit["exact"] for hit in all_users_page["nodes"])
    refused = await root.execute(LOOKUP, filter={"query": "-duck"}, users=ADA)
    assert refused["errors"][0]["extensions"]["code"] == "BAD_USER_INPUT"
    other_query = await root.execute(
        LOOKUP,
        filter={"query": "quacks"},
        users=ADA,
        after=first_page["pageInfo"]["endCursor"],
    )
    assert other_query["errors"][0]["extensions"]["code"] == "BAD_CURSOR"


async def test_only_root_looks_up_words_in_mail_of_others(
    ada_with_messages: GraphQLClient, root: GraphQLClient, admin_client: GraphQLClient
) -> None:
    await deliver_to(admin_client, raw_message("Mine", body="duck"))
    await index_all(root.environment)
    arguments: dict[str, Any] = {"filter": {"query": "duck"}}
    own = (await admin_client(LOOKUP, **arguments))["searchDiagnostics"]["hits"]
    assert own["totalCount"] == 1
    both = {"usernames": ["over", "ada"]}
    for users in (ADA, both):
        answer = await admin_client.execute(LOOKUP, **arguments, users=users)
        assert [error["extensions"]["code"] for error in answer["errors"]] == ["FORBIDDEN"]
    event_counts = "SELECT count FROM security_events WHERE user_id = :u AND action = :a"
    nothing_found = {"filter": {"query": "swan"}, "users": ADA}
    assert (await root(LOOKUP, **nothing_found))["searchDiagnostics"]["hits"]["totalCount"] == 0
    rows = await select_rows(
        root.environment, event_counts, u=ada_with_messages.user.id, a="MESSAGES_READ"
    )
    assert rows == [(1,)]


async def test_lookup_statement_count_is_independent_of_hits(
    root: GraphQLClient, ada: GraphQLClient, environment: Environment, statements: list[str]
) -> None:
    counts = []
    for message_count in (1, 19):
        for nth in range(message_count):
            await deliver_to(ada, raw_message(f"{message_count} {nth}", body="duck"))
        await index_all(environment)
        await root(LOOKUP, filter={"query": "duck"}, users=ADA)
        del statements[:]
        result = await root(LOOKUP, filter={"query": "duck"}, users=ADA)
        counts.append(len(statements))
    assert result["searchDiagnostics"]["hits"]["totalCount"] == 20
    assert counts[0] == counts[1]


async def test_index_inspection_is_forbidden_for_non_admins(
    ada_with_messages: GraphQLClient, bob: GraphQLClient, environment: Environment, http: Any
) -> None:
    await index_all(environment)
    domain_admin = await make_client(environment, http, "boss", role=Role.DOMAIN_ADMIN)
    tokenize = '{ searchDiagnostics { tokens(text: "a") { text } } }'
    for client in (bob, domain_admin):
        queries: tuple[tuple[str, dict[str, Any]], ...] = (
            (STATUS_QUERY, {}),
            (EXPAND_QUERY, {"filter": {"query": "duck"}, "users": ADA}),
            (LOOKUP, {"filter": {"query": "duck"}, "users": ADA}),
            (tokenize, {}),
        )
        for document, arguments in queries:
            answer = await client.execute(document, **arguments)
            assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
        mutations: tuple[tuple[str, dict[str, Any]], ...] = (
            ("searchIndexBuild", {"users": ADA, "mailboxPatterns": ["*"]}),
            ("searchIndexRebuild", {"users": ADA}),
            ("searchIndexOptimize", {}),
        )
        for name, arguments in mutations:
            answer = await run_mailbox_mutation(client, name, PAYLOAD_FIELDS, **arguments)
            assert [error["code"] for error in answer["errors"]] == ["FORBIDDEN"]
    assert await select_rows(environment, "SELECT id FROM tasks") == []
    admin = await make_client(environment, http, "adam", role=Role.ADMIN)
    with_subject = LOOKUP.replace("imap { uid }", "imap { uid } subject")
    answer = await admin.execute(with_subject, filter={"query": "duck"}, users=ADA)
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert global_ids.encode("User", ada_with_messages.user.id)
