"""Rules for all mutations and root fields: journal, dry run, idempotency, atomicity and access."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from graphql import GraphQLObjectType, get_named_type, is_leaf_type
from sqlalchemy import Connection, event
from sqlmodel import SQLModel

from models.events import journal
from models.events.event_types import (
    DOMAIN_EVENT_TYPES,
    WEBHOOK_ONLY_EVENT_TYPES,
    EventType,
)
from models.runtime.environment import Environment
from models.users.roles import Role, Scope
from resolvers.auth import authentication
from tests.conftest import (
    PREPARED_ACCOUNTS_KEY,
    GraphQLClient,
    PreparedAccounts,
    PrepareStore,
    make_api_key,
)
from tests.support.accounts.prepared_domain_admin import (
    add_admin_of_another_domain,
    make_admin_of_another_domain,
)
from tests.support.reference.call_examples import example_of_call
from tests.support.reference.examples import load_examples
from tests.support.sample_mutations import SAMPLE_CALLS, AtomicMutationCalls, MutationCall
from tests.support.sample_mutations.mutation_call import PAYLOAD_FIELDS
from tests.support.schema.printed_schema import SDL
from tests.support.stores.journal_comparison import (
    JOURNALED_TABLES,
    PART_TABLES,
    UNJOURNALED_TABLES,
)
from tests.support.stores.store_fixtures import run_in_new_loop
from tests.support.stores.store_snapshot import StoreRows, changed_row_ids, snapshot_rows

EXAMPLES = load_examples()
ADMIN_NAME = "admin_of_another_domain"


@pytest.fixture(scope="module")
def prepare_sqlite_store(
    prepare_sqlite_store: PrepareStore[Path], tmp_path_factory: pytest.TempPathFactory
) -> PrepareStore[Path]:
    """Add an administrator of another domain to the prepared stores."""

    @cache
    def prepare(names: tuple[str, ...]) -> tuple[Path, PreparedAccounts]:
        store, accounts = prepare_sqlite_store(names)
        path, secret = run_in_new_loop(
            add_admin_of_another_domain(store, tmp_path_factory.mktemp("prepared"))
        )
        return path, {**accounts, ADMIN_NAME: ({}, secret)}

    return prepare


@pytest.fixture
async def admin_of_another_domain(
    request: pytest.FixtureRequest, ada: GraphQLClient
) -> GraphQLClient:
    prepared = request.node.stash.get(PREPARED_ACCOUNTS_KEY, {}).get(ADMIN_NAME)
    if not prepared:
        return await make_admin_of_another_domain(ada.environment, ada.http)
    return replace(ada, secret=prepared[1])


def changed_submissions(before: StoreRows, after: StoreRows) -> set[int]:
    """Return the ids of the submissions with a changed recipient."""
    changed_keys = changed_row_ids(before, after, "queue_entries", set())
    rows = {**before["queue_entries"], **after["queue_entries"]}
    return {rows[key,]["submission_id"] for key in changed_keys}


async def prepare_call(
    name: str, ada: GraphQLClient, root: GraphQLClient
) -> tuple[MutationCall, GraphQLClient]:
    call = await SAMPLE_CALLS[name](ada, root)
    return call, call.other_caller or (root if call.by_root else ada)


def test_every_mutation_has_a_sample_call() -> None:
    mutation = SDL.mutation_type
    assert mutation is not None
    assert set(SAMPLE_CALLS) == set(mutation.fields)


def test_every_table_is_journaled_or_listed_as_unjournaled() -> None:
    tables = {table.name for table in SQLModel.metadata.sorted_tables}
    parts = {part for table_parts in PART_TABLES.values() for part in table_parts}
    assert tables == {*JOURNALED_TABLES, *UNJOURNALED_TABLES, *parts}


@pytest.mark.parametrize("name", SAMPLE_CALLS)
async def test_mutation_is_refused_to_others_and_journaled_once(
    name: str,
    ada: GraphQLClient,
    bob: GraphQLClient,
    root: GraphQLClient,
    admin_of_another_domain: GraphQLClient,
) -> None:
    """All calls use one database, and each keeps the rows that the next one needs."""
    call, client = await prepare_call(name, ada, root)
    if name not in WITHOUT_ACCOUNT:
        rows = await assert_another_user_changes_nothing(call, ada, bob)
        await assert_other_admin_changes_nothing(call, ada, admin_of_another_domain, rows)
    if name not in WITHOUT_IDEMPOTENCY_KEY:
        await assert_key_of_another_call_conflicts(call, client)
    rows = await assert_read_only_key_changes_nothing(call, client)
    await assert_journal_has_exactly_the_changes(call, client, rows)


async def assert_journal_has_exactly_the_changes(
    call: MutationCall, client: GraphQLClient, rows: StoreRows
) -> None:
    """A dry run changes nothing and returns the same payload. A repeated call changes nothing."""
    full_call = replace(call, payload=selection_set(_payload_type(call.name)))
    dry_run_payload, before = await assert_dry_run_changes_nothing(full_call, client, rows)
    options = {} if call.name in WITHOUT_IDEMPOTENCY_KEY else {"idempotencyKey": "once"}
    payloads = await asyncio.gather(
        *(full_call(client, **options) for _ in range(2 if options else 1))
    )
    first, *repeated = sorted(payloads, key=lambda payload: bool(payload["replayed"]))
    assert first["errors"] == []
    assert _differing_fields(dry_run_payload, first) <= {
        "journalCursor",
        *FIELDS_THAT_DIFFER.get(call.name, ()),
    }
    after = await snapshot_rows(client.environment)
    assert_journal_matches_changes(call, client, first, before, after)
    if options:
        assert first["replayed"] is False
        assert repeated == [{**first, "replayed": True}]
        other_session_payload = await full_call(client, **options, sessionId="another")
        assert other_session_payload == {**first, "replayed": True}
        assert await snapshot_rows(client.environment) == after


def _payload_type(name: str) -> GraphQLObjectType:
    assert SDL.mutation_type is not None
    payload = get_named_type(SDL.mutation_type.fields[name].type)
    assert isinstance(payload, GraphQLObjectType)
    return payload


def assert_journal_matches_changes(
    call: MutationCall,
    client: GraphQLClient,
    payload: Mapping[str, Any],
    before: StoreRows,
    after: StoreRows,
) -> None:
    entries = [row for key, row in after["changes"].items() if key not in before["changes"]]
    for table, (kind, ignored) in JOURNALED_TABLES.items():
        journaled_keys = {
            key for row in entries if row["type"].startswith(kind) for key in row["ids"]
        }
        extra_keys = {client.user.id} if call.nudges_clients and table == "users" else set()
        parts = [changed_row_ids(before, after, part, set()) for part in PART_TABLES.get(table, ())]
        if table == "submissions":
            parts.append(changed_submissions(before, after))
        assert journaled_keys == changed_row_ids(before, after, table, ignored).union(
            extra_keys, *parts
        ), table
    assert bool(entries) is call.journaled
    if call.journaled:
        assert payload["journalCursor"] == _cursor(entries)


def _cursor(entries: list[dict[str, Any]]) -> str:
    last_numbers: dict[int, int] = {}
    for row in entries:
        last_numbers[row["stream_id"]] = max(row["last"], last_numbers.get(row["stream_id"], 0))
    return "1" + "".join(f".{stream}.{number}" for stream, number in sorted(last_numbers.items()))


# types of fields whose values are new in each call
NEW_VALUE_TYPES = {"ID", "Cursor", "URL", "UndoToken"}
# fields without a usable value in a dry run
COMMIT_ONLY_FIELDS = {
    "challenge", "clientSecret", "journalCursor", "mobileconfig", "otpauthUrl", "password",
    "qrCode", "recoveryCodes", "secret", "token", "undo",
}  # fmt: skip


def selection_set(kind: GraphQLObjectType, depth: int = 2) -> str:
    """Return all leaf fields without arguments and guards, down to this depth."""
    selections = []
    for name, field in kind.fields.items():
        named_type = get_named_type(field.type)
        is_guarded = field.ast_node is not None and field.ast_node.directives
        if (
            field.args
            or is_guarded
            or named_type.name in NEW_VALUE_TYPES
            or (depth == 2 and name in COMMIT_ONLY_FIELDS)
        ):
            continue
        if is_leaf_type(named_type):
            selections.append(name)
        elif (
            isinstance(named_type, GraphQLObjectType)
            and depth
            and not named_type.name.endswith("Connection")
        ):
            selections.append(f"{name} {{ {selection_set(named_type, depth - 1)} }}")
    return " ".join(selections) or "__typename"


def _differing_fields(first: Any, second: Any, name: str = "") -> set[str]:
    """Return the names of the fields in which two payloads differ."""
    if isinstance(first, dict) and isinstance(second, dict) and first.keys() == second.keys():
        return set[str]().union(*(_differing_fields(first[key], second[key], key) for key in first))
    if isinstance(first, list) and isinstance(second, list) and len(first) == len(second):
        pairs = zip(first, second, strict=True)
        return set[str]().union(*(_differing_fields(*pair, name) for pair in pairs))
    return {name} if first != second else set()


RANDOM_FIELDS = {"emailId", "guid", "objectId", "messageIdHeader", "pop3Uidl", "queueId"}
KEY_FIELDS = {"fingerprint", "fingerprintSha256", "publicKey", "value"}
FIELDS_THAT_DIFFER = {  # fields with random values, and a log that a dry run doesn't have
    "temporaryAddressCreate": {"address", "localPart"},
    "connectorStart": {"correlationId"},
    "blobCopy": {"blob"},
    "blobPut": {"blob"},
    "cacheFlush": {"entryCount", "size"},  # writes of other requests
    "dkimKeyRotate": KEY_FIELDS,
    "mailImport": {"correlationId"},
    "oauthClientCreate": {"clientId"},
    "mailboxCreate": RANDOM_FIELDS,
    "mailboxRename": RANDOM_FIELDS,
    "messageCopy": RANDOM_FIELDS,
    "messageRedirect": RANDOM_FIELDS,
    "messageSend": RANDOM_FIELDS,
    "draftSend": RANDOM_FIELDS,
    "draftSave": {"boundary"},
    "messageImport": RANDOM_FIELDS,
    "quarantineRelease": RANDOM_FIELDS,
    "routeTest": {"log"},
}


async def assert_dry_run_changes_nothing(
    call: MutationCall, client: GraphQLClient, before: StoreRows
) -> tuple[Any, StoreRows]:
    """Return the payload of the dry run, and all rows after it."""
    unstored = {
        name: name if is_leaf_type(get_named_type(field.type)) else f"{name} {{ __typename }}"
        for name, field in _payload_type(call.name).fields.items()
        if name in COMMIT_ONLY_FIELDS
    }
    added_fields = [text for text in unstored.values() if text not in PAYLOAD_FIELDS.split()]
    # without added fields, the document is that of the other calls, which is prepared once
    dry_run_call = replace(call, payload=" ".join((call.payload, *added_fields)))
    payload = await dry_run_call(client, validateOnly=True)
    assert payload["errors"] == []
    assert {name: payload[name] for name in unstored if payload[name]} == {}
    payload = {name: payload[name] for name in payload if name not in unstored} | {
        "journalCursor": None
    }
    after = await snapshot_rows(client.environment)
    assert _without_blobs(after) == _without_blobs(before)
    return payload, after


def _without_blobs(rows: StoreRows) -> StoreRows:
    """Blobs are stored before the transaction, and garbage collection deletes unused ones."""
    return {table: table_rows for table, table_rows in rows.items() if table != "blobs"}


WITHOUT_IDEMPOTENCY_KEY = {  # one-time proofs, and long actions
    "authenticate", "blobCopy", "cacheClean", "cacheFlush", "cacheRemove", "cacheRescan",
    "cacheUnpack", "clusterNodeFlush", "componentStart", "componentStop", "configReload",
    "connectorTest", "passwordVerify", "recoveryCodesCreate", "serverStop", "sessionDrain",
    "sessionTerminate", "accessTokenRevoke", "totpDisable", "totpVerify", "userAffinitySet",
    "twoFactorDisable", "webauthnVerify", "webauthnDelete", "webauthnRegister",
}  # fmt: skip


async def assert_key_of_another_call_conflicts(call: MutationCall, client: GraphQLClient) -> None:
    other_call = MutationCall("mailboxCreate", {"paths": ["Elsewhere"]})
    if call.by_root:
        other_call = MutationCall(
            "domainCreate", {"name": "elsewhere.example", "createDkim": False}
        )
    assert (await other_call(client, idempotencyKey="taken"))["errors"] == []
    refused = await call(client, idempotencyKey="taken")
    assert [error["code"] for error in refused["errors"]] == ["CONFLICT"]
    assert refused["errors"][0]["path"] == ["options", "idempotencyKey"]


# mutations that can't be part of an atomic request
NOT_ATOMIC = {
    "authenticate", "blobCopy", "blobDelete", "blobPut", "cacheClean", "cacheFlush", "cacheRemove",
    "cacheRescan", "cacheUnpack", "clusterNodeFlush", "componentStart", "componentStop",
    "configReload", "connectorTest", "mailboxRepair", "passwordVerify", "recoveryCodesCreate",
    "routeTest", "serverStop", "sessionDrain", "sessionTerminate", "userAffinitySet",
    "totpVerify", "totpDisable",
    "twoFactorDisable", "webauthnVerify", "webauthnDelete", "webauthnRegister",
}  # fmt: skip


@pytest.mark.parametrize("name", SAMPLE_CALLS)
async def test_atomic_request_commits_all_fields_or_none(
    name: str, ada: GraphQLClient, root: GraphQLClient
) -> None:
    """The call of the documented example succeeds, alone or in an atomic request."""
    call, client = await prepare_call(name, ada, root)
    assert EXAMPLES[f"mutation.{name}"] == example_of_call(call)
    other_call, failing_call = ATOMIC_COMPANIONS[client.user.id != 0]
    await client("{ viewer { role } }")  # the use of the key is recorded before the snapshot
    await authentication.wait_for_background_tasks(ada.environment)
    before = await snapshot_rows(ada.environment)
    payloads = await AtomicMutationCalls([other_call, call, failing_call])(client)
    codes = [error_codes(payload) for payload in payloads]
    if name in NOT_ATOMIC:
        assert codes == [["ABORTED"], ["FORBIDDEN_OPERATION"], ["ABORTED"]]
        assert await snapshot_rows(ada.environment) == before
        assert (await call(client))["errors"] == []
        return
    assert codes == [["ABORTED"], ["ABORTED"], ["NOT_FOUND"]]
    assert [payload["journalCursor"] for payload in payloads] == [None] * 3
    assert _without_blobs(await snapshot_rows(ada.environment)) == _without_blobs(before)

    with record_commits(ada.environment) as recorded_commits:
        payloads = await AtomicMutationCalls([other_call, call])(client)
    assert [error_codes(payload) for payload in payloads] == [[], []]
    assert len(recorded_commits) == 1
    after = await snapshot_rows(ada.environment)
    table = "key_value_entries" if client.user.id else "domains"
    assert changed_row_ids(before, after, table, set())
    if call.journaled:
        last_key = max(key for key in after["changes"] if key not in before["changes"])
        assert payloads[1]["journalCursor"].endswith(str(after["changes"][last_key]["last"]))


# a call that succeeds and one that fails: of a platform key, of a user
ATOMIC_COMPANIONS = {
    False: (
        MutationCall("domainCreate", {"name": "beside.example", "createDkim": False}),
        MutationCall("domainDelete", {"domains": [{"name": "nowhere.example"}]}),
    ),
    True: (
        MutationCall("keyValueSet", {"key": "beside", "value": "x"}),
        MutationCall("mailboxRename", {"mailbox": {"path": "Nowhere"}, "newPath": "Elsewhere"}),
    ),
}


def error_codes(payload: Any) -> list[str]:
    return [error["code"] for error in payload["errors"]]


@contextmanager
def record_commits(environment: Environment) -> Iterator[list[Any]]:
    """Yield a list that collects the commits of the database."""
    connections: list[Any] = []

    def record(connection: Connection) -> None:
        connections.append(connection)

    engine = environment.database.engine.sync_engine
    event.listen(engine, "commit", record)
    try:
        yield connections
    finally:
        event.remove(engine, "commit", record)


WITHOUT_ACCOUNT = {
    "apiKeyCreate",
    "authenticate",
    "passwordVerify",
    "accessTokenRevoke",
}  # calls that name no account


async def assert_other_admin_changes_nothing(
    call: MutationCall, ada: GraphQLClient, other_admin: GraphQLClient, before: StoreRows
) -> None:
    response = await other_admin.execute(call.document(), input=call.input)
    after = await snapshot_rows(ada.environment)
    for table, rows in before.items():
        protected_rows = {
            key: row
            for key, row in rows.items()
            if _belongs_to(row, ada)
            or table in {"addresses", "domains", "domain_aliases", "setting_values"}
        }
        assert {key: after[table].get(key) for key in protected_rows} == protected_rows, (
            table,
            response,
        )
    response_text = str(response)
    for sent_text in (str(call.input), *_texts_in(call.input)):
        response_text = response_text.replace(sent_text, "")
    assert "@example.org" not in response_text


def _texts_in(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping | list):
        for member in value.values() if isinstance(value, Mapping) else value:
            yield from _texts_in(member)


async def assert_another_user_changes_nothing(
    call: MutationCall, ada: GraphQLClient, bob: GraphQLClient
) -> StoreRows:
    before = await snapshot_rows(ada.environment)
    await call(bob)
    after = await snapshot_rows(ada.environment)
    for table, rows in before.items():
        own_rows = {key: row for key, row in rows.items() if _belongs_to(row, ada)}
        assert {key: after[table].get(key) for key in own_rows} == own_rows, table
    return after


def _belongs_to(row: Mapping[str, Any], client: GraphQLClient) -> bool:
    return client.user.id in (row.get("user_id"), row.get("stream_id"), row.get("id"))


async def assert_read_only_key_changes_nothing(
    call: MutationCall, client: GraphQLClient
) -> StoreRows:
    environment = client.environment
    secret = await make_api_key(
        environment, "reader", user_id=client.user.id or None, role=Role.USER, read_only=True
    )
    reader = GraphQLClient(client.http, environment, client.user, secret)
    before = await snapshot_rows(environment)
    response = await reader.execute(call.document(), input=call.input)
    assert response["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    after = await snapshot_rows(environment)
    assert after == before
    return after


async def test_only_public_fields_work_without_credential(ada: GraphQLClient) -> None:
    anonymous_client = GraphQLClient(ada.http, ada.environment, ada.user, "")
    for document in ("{ user { id } }", "{ tasks { nodes { id } } }"):
        response = await anonymous_client.http.post("/graphql", json={"query": document})
        (error,) = response.json()["errors"]
        assert error["extensions"]["code"] == "UNAUTHENTICATED"
    viewer_response = await anonymous_client.http.post(
        "/graphql", json={"query": "{ viewer { role } }"}
    )
    assert viewer_response.json()["data"] == {"viewer": {"role": "PUBLIC"}}


@pytest.mark.parametrize("name", ["message", "mailbox", "thread"])
async def test_submit_scope_cannot_read_mail_through_payload(name: str, ada: GraphQLClient) -> None:
    secret = await make_api_key(
        ada.environment, "sender", user_id=ada.user.id, role=Role.USER, scopes=[Scope.SUBMIT]
    )
    sender = GraphQLClient(ada.http, ada.environment, ada.user, secret)
    selection_text = {
        "message": "messages { subject }",
        "mailbox": "messages { mailbox { path } }",
        "thread": "submissions { message { thread { subject } } }",
    }[name]
    document = (
        'mutation { messageSend(input: {to: [{address: "carol@example.com"}], text: "x"}) '
        f"{{ {selection_text} }} }}"
    )
    before = await snapshot_rows(ada.environment)
    response = await sender.execute(document)
    assert response["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert (await snapshot_rows(ada.environment))["messages"] == before["messages"]


def test_every_change_kind_belongs_to_a_table_or_is_listed() -> None:
    kind_prefixes = {kind for kind, _ in JOURNALED_TABLES.values()}
    other_kinds = {
        kind for kind in EventType if not any(kind.startswith(prefix) for prefix in kind_prefixes)
    }
    assert other_kinds == {
        *DOMAIN_EVENT_TYPES,
        *WEBHOOK_ONLY_EVENT_TYPES,
        EventType.LIMIT_REACHED,
        EventType.RESYNC,
        *(EventType.THREAD_UPDATED, EventType.THREAD_MERGED),  # no events of messages
    }
    assert journal.PLATFORM == 0
