"""What holds for every mutation and every root field, whatever it does."""

import asyncio
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import pytest
from graphql import GraphQLObjectType, get_named_type, is_leaf_type
from sqlalchemy import Connection, event
from sqlmodel import SQLModel

from models.events import journal
from models.events.journal import ChangeKind
from models.runtime.environment import Environment
from models.users.roles import AdminPermission, Role, Scope
from resolvers.auth import authentication
from tests.conftest import Client, make_key
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.sample_mutations import CALLS, Call, Calls
from tests.support.schema.printed_schema import SDL
from tests.support.stores.journal_comparison import JOURNALED_TABLES, PART_TABLES
from tests.support.stores.store_snapshot import Rows, changed, everything

SILENT = {  # tables that no client sees, or that only hold up what is told elsewhere
    "access_tokens", "acme_accounts", "acme_challenges", "admin_log", "api_keys", "app_passwords",
    "audit_accesses", "audit_blobs", "audit_copies", "audits", "autoreply_senders", "bcc_rules",
    "blobs", "changes", "compose_listeners", "connector_folders", "connector_messages",
    "connector_runs", "correspondents", "credential_changes", "deleted_users", "deliveries",
    "documents",
    "domain_admins", "domain_aliases", "domain_totals", "domains", "draft_files",
    "dropped_objects", "export_pieces", "exports", "file_shares", "greylisted",
    "import_archives", "lessons", "mailbox_subscriptions",
    "message_blobs", "message_steps", "place_turns", "push_channels", "push_keys",
    "quarantine_blobs",
    "rate_holds", "receipts", "recipient_rewrites", "recovery_codes", "replays", "settings",
    "server_clocks", "server_processes", "sieve_memories", "store_facts", "store_incarnation",
    "streams", "sts_policies", "submission_blobs", "thread_refs", "threads",
    "throttles", "totp_seeds", "undos", "upload_parts", "uploads", "usages", "user_tags",
    "vault_keys", "webauthn_challenges", "webauthn_keys", "webhook_deliveries", "webhook_feeds",
    "webhook_lanes", "webhooks", "write_probes",
}  # fmt: skip


def submissions_of(before: Rows, after: Rows) -> set[int]:
    """Those of which a recipient is otherwise."""
    keys = changed(before, after, "deliveries", set())
    rows = {**before["deliveries"], **after["deliveries"]}
    return {rows[key,]["submission_id"] for key in keys}


async def prepared(name: str, ada: Client, root: Client) -> tuple[Call, Client]:
    made = await CALLS[name](ada, root)
    return made, made.by or (root if made.by_root else ada)


def test_every_mutation_has_its_call() -> None:
    mutation = SDL.mutation_type
    assert mutation is not None
    assert set(CALLS) == set(mutation.fields)


def test_every_table_is_told_of_or_said_to_be_silent() -> None:
    tables = {table.name for table in SQLModel.metadata.sorted_tables}
    parts = {part for found in PART_TABLES.values() for part in found}
    assert tables == {*JOURNALED_TABLES, *SILENT, *parts}


@pytest.mark.parametrize("name", CALLS)
async def test_the_journal_tells_exactly_what_a_mutation_changed(
    name: str, ada: Client, root: Client
) -> None:
    """Its trial changes nothing and answers as it does; repeated, it changes nothing more.

    One store serves all these calls. The traceback names the call that failed.
    """
    made, client = await prepared(name, ada, root)
    whole = replace(made, payload=selection(_payload_type(name)))
    await assert_read_only_key_changes_nothing(made, client)
    tried, before = await assert_trial_changes_nothing(whole, client)
    keys = {} if name in NOT_REPEATED else {"idempotencyKey": "once"}
    done = await asyncio.gather(*(whole(client, **keys) for _ in range(2 if keys else 1)))
    first, *repeated = sorted(done, key=lambda one: bool(one["replayed"]))
    assert first["errors"] == []
    assert _differing(tried, first) <= {"journalCursor", *DIFFERING.get(name, ())}
    after = await everything(ada.world)
    assert_journal_tells_what_changed(made, client, first, before, after)
    if keys:
        assert first["replayed"] is False
        assert repeated == [{**first, "replayed": True}]
        again = await whole(client, **keys, sessionId="another")
        assert again == {**first, "replayed": True}
        assert await everything(ada.world) == after


def _payload_type(name: str) -> GraphQLObjectType:
    assert SDL.mutation_type is not None
    payload = get_named_type(SDL.mutation_type.fields[name].type)
    assert isinstance(payload, GraphQLObjectType)
    return payload


def assert_journal_tells_what_changed(
    made: Call, client: Client, done: Mapping[str, Any], before: Rows, after: Rows
) -> None:
    entries = [row for key, row in after["changes"].items() if key not in before["changes"]]
    for table, (kind, ignored) in JOURNALED_TABLES.items():
        told = {key for row in entries if row["kind"].startswith(kind) for key in row["ids"]}
        nudged = {client.user.id} if made.nudges and table == "users" else set()
        parts = [changed(before, after, part, set()) for part in PART_TABLES.get(table, ())]
        if table == "submissions":
            parts.append(submissions_of(before, after))
        assert told == changed(before, after, table, ignored).union(nudged, *parts), table
    assert bool(entries) is made.journaled
    if made.journaled:
        assert done["journalCursor"] == _cursor(entries)


def _cursor(entries: list[dict[str, Any]]) -> str:
    last: dict[int, int] = {}
    for row in entries:
        last[row["stream_id"]] = max(row["last"], last.get(row["stream_id"], 0))
    return "1" + "".join(f".{stream}.{number}" for stream, number in sorted(last.items()))


@pytest.mark.parametrize("name", CALLS)
async def test_what_is_refused_changes_nothing(
    name: str, ada: Client, bob: Client, root: Client
) -> None:
    """One store serves all these calls: each leaves what the next one needs.

    The traceback names the call that failed.
    """
    made, client = await prepared(name, ada, root)
    if name not in OF_NOBODY:
        await assert_another_user_changes_nothing(made, ada, bob)
        await assert_administrator_of_another_domain_changes_nothing(made, ada, root)
    if name not in NOT_REPEATED:
        await assert_key_used_for_something_else_conflicts(made, client)


# types of fields whose values are made anew
MADE_ANEW = {"ID", "Cursor", "URL", "UndoToken"}
# what is good for nothing when it is only tried
RESULTS = {
    "challenge", "journalCursor", "mobileconfig", "otpauthUrl", "password", "qrCode",
    "recoveryCodes", "secret", "seed", "token", "undo",
}  # fmt: skip


def selection(kind: GraphQLObjectType, depth: int = 2) -> str:
    """All fields of an object that anybody may ask without arguments, so deep."""
    found = []
    for name, field in kind.fields.items():
        of = get_named_type(field.type)
        guarded = field.ast_node is not None and field.ast_node.directives
        if field.args or guarded or of.name in MADE_ANEW or (depth == 2 and name in RESULTS):
            continue
        if is_leaf_type(of):
            found.append(name)
        elif isinstance(of, GraphQLObjectType) and depth and not of.name.endswith("Connection"):
            found.append(f"{name} {{ {selection(of, depth - 1)} }}")
    return " ".join(found) or "__typename"


def _differing(one: Any, other: Any, name: str = "") -> set[str]:
    """The names of the fields in which two answers differ."""
    if isinstance(one, dict) and isinstance(other, dict) and one.keys() == other.keys():
        return set[str]().union(*(_differing(one[key], other[key], key) for key in one))
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        pairs = zip(one, other, strict=True)
        return set[str]().union(*(_differing(*pair, name) for pair in pairs))
    return {name} if one != other else set()


DRAWN = {"guid", "messageId", "pop3Uidl", "queueId"}
KEY = {"fingerprint", "fingerprintSha256", "publicKey", "value"}
DIFFERING = {  # fields with something that is drawn anew, and a log that a trial doesn't have
    "addressCreateTemporary": {"address", "localPart"},
    "connectorRun": {"unit"},
    "dkimKeyRotate": KEY,
    "mailImport": {"unit"},
    "mailboxCreate": DRAWN,
    "mailboxRename": DRAWN,
    "messageCopy": DRAWN,
    "messageForward": DRAWN,
    "messageSend": DRAWN,
    "messageSubmit": DRAWN,
    "messageUpload": {"boundary"},
    "quarantineRelease": DRAWN,
    "routeTest": {"log"},
}


async def assert_trial_changes_nothing(made: Call, client: Client) -> tuple[Any, Rows]:
    """Return what the trial answers, and what is stored after it."""
    before = await everything(client.world)
    tried = await made(client, validateOnly=True)
    assert (tried["errors"], tried["journalCursor"]) == ([], None)
    after = await everything(client.world)
    loose = {"blobs"}  # bytes are made safe before the unit: the collector takes them again
    assert {n: rows for n, rows in after.items() if n not in loose} == {
        n: rows for n, rows in before.items() if n not in loose
    }
    return tried, after


NOT_REPEATED = {  # what is proved, once, and what its call only tries
    "authenticate", "connectorCheck", "recoveryCodesCreate", "tokenRevoke", "totpCheck",
    "totpDisable",
    "twoFactorDisable", "webauthnCheck", "webauthnDelete", "webauthnRegister",
}  # fmt: skip


async def assert_key_used_for_something_else_conflicts(made: Call, client: Client) -> None:
    other = Call("mailboxCreate", {"paths": ["Elsewhere"]})
    if made.by_root:
        other = Call("userCreate", {"address": "zoe@example.org", "passwordDisabled": True})
    assert (await other(client, idempotencyKey="taken"))["errors"] == []
    refused = await made(client, idempotencyKey="taken")
    assert [error["code"] for error in refused["errors"]] == ["CONFLICT"]
    assert refused["errors"][0]["path"] == ["options", "idempotencyKey"]


# what takes no part in anything else, whatever is asked of it
ALONE = {
    "authenticate", "connectorCheck", "mailboxRepair", "recoveryCodesCreate", "routeTest",
    "totpCheck", "totpDisable",
    "twoFactorDisable", "webauthnCheck", "webauthnDelete", "webauthnRegister",
}  # fmt: skip


@pytest.mark.parametrize("name", CALLS)
async def test_atomic_keeps_all_fields_or_none(name: str, ada: Client, root: Client) -> None:
    made, client = await prepared(name, ada, root)
    beside, fails = BESIDE[client.user.id != 0]
    await client("{ viewer { role } }")  # that its key is used is noted by now
    await authentication.wait_for_background_tasks(ada.world)
    before = await everything(ada.world)
    done = await Calls([beside, made, fails])(client)
    if name in ALONE:
        assert [codes(one) for one in done] == [["ABORTED"], ["FORBIDDEN_OPERATION"], ["ABORTED"]]
        assert await everything(ada.world) == before
        return
    assert [codes(one) for one in done] == [["ABORTED"], ["ABORTED"], ["NOT_FOUND"]]
    assert [one["journalCursor"] for one in done] == [None] * 3
    loose = {"blobs"}  # as of a trial
    assert {n: rows for n, rows in (await everything(ada.world)).items() if n not in loose} == {
        n: rows for n, rows in before.items() if n not in loose
    }

    with commits(ada.world) as many:
        done = await Calls([beside, made])(client)
    assert [codes(one) for one in done] == [[], []]
    assert len(many) == 1
    after = await everything(ada.world)
    table = "key_values" if client.user.id else "domains"
    assert changed(before, after, table, set())
    if made.journaled:
        last = max(key for key in after["changes"] if key not in before["changes"])
        assert done[1]["journalCursor"].endswith(str(after["changes"][last]["last"]))


# what is done beside another, and what fails: of a key of the platform's, of a user
BESIDE = {
    False: (
        Call("domainCreate", {"name": "beside.example"}),
        Call("domainDelete", {"domains": [{"name": "nowhere.example"}]}),
    ),
    True: (
        Call("keyValueSet", {"key": "beside", "value": "x"}),
        Call("mailboxRename", {"mailbox": {"path": "Nowhere"}, "newPath": "Elsewhere"}),
    ),
}


def codes(done: Any) -> list[str]:
    return [error["code"] for error in done["errors"]]


@contextmanager
def commits(world: Environment) -> Iterator[list[Any]]:
    """What the store commits of sessions, meanwhile."""
    found: list[Any] = []

    def note(connection: Connection) -> None:
        found.append(connection)

    engine = world.database.engine.sync_engine
    event.listen(engine, "commit", note)
    yield found
    event.remove(engine, "commit", note)


OF_NOBODY = {"apiKeyCreate", "authenticate", "tokenRevoke"}  # calls that name no account


async def assert_administrator_of_another_domain_changes_nothing(
    made: Call, ada: Client, root: Client
) -> None:
    await Call("userCreate", {"address": "x@afar.example", "passwordDisabled": True})(root)
    far = await make_domain_admin(
        ada.world, ada.http, "far", list(AdminPermission), domains=["afar.example"]
    )
    before = await everything(ada.world)
    answer = await far.raw(made.document(), input=made.input)
    after = await everything(ada.world)
    for table, rows in before.items():
        theirs = {
            key: row
            for key, row in rows.items()
            if _is(row, ada) or table in {"addresses", "domains", "domain_aliases", "settings"}
        }
        assert {key: after[table].get(key) for key in theirs} == theirs, (table, answer)
    assert "@example.org" not in str(answer).replace(str(made.input), "")


async def assert_another_user_changes_nothing(made: Call, ada: Client, bob: Client) -> None:
    before = await everything(ada.world)
    await made(bob)
    after = await everything(ada.world)
    for table, rows in before.items():
        mine = {key: row for key, row in rows.items() if _is(row, ada)}
        assert {key: after[table].get(key) for key in mine} == mine, table


def _is(row: Mapping[str, Any], client: Client) -> bool:
    return client.user.id in (row.get("user_id"), row.get("stream_id"), row.get("id"))


async def assert_read_only_key_changes_nothing(made: Call, client: Client) -> None:
    world = client.world
    secret = await make_key(
        world, "reader", user_id=client.user.id or None, role=Role.USER, read_only=True
    )
    reader = Client(client.http, world, client.user, secret)
    before = await everything(world)
    answer = await reader.raw(made.document(), input=made.input)
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert await everything(world) == before


async def test_without_a_credential_only_public_fields_answer(ada: Client) -> None:
    nobody = Client(ada.http, ada.world, ada.user, "")
    for document in ("{ user { id } }", "{ tasks { nodes { id } } }"):
        response = await nobody.http.post("/graphql", json={"query": document})
        (error,) = response.json()["errors"]
        assert error["extensions"]["code"] == "UNAUTHENTICATED"
    answer = await nobody.http.post("/graphql", json={"query": "{ viewer { role } }"})
    assert answer.json()["data"] == {"viewer": {"role": "PUBLIC"}}


@pytest.mark.parametrize("name", ["message", "mailbox", "thread"])
async def test_a_credential_for_sending_reads_no_mail_by_any_way(name: str, ada: Client) -> None:
    secret = await make_key(
        ada.world, "sender", user_id=ada.user.id, role=Role.USER, scopes=[Scope.SUBMIT]
    )
    sender = Client(ada.http, ada.world, ada.user, secret)
    inside = {
        "message": "message { subject }",
        "mailbox": "message { mailbox { path } }",
        "thread": "submission { message { thread { subject } } }",
    }[name]
    document = (
        'mutation { messageSend(input: {to: [{address: "carol@example.com"}], text: "x"}) '
        f"{{ {inside} }} }}"
    )
    before = await everything(ada.world)
    answer = await sender.raw(document)
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    assert (await everything(ada.world))["messages"] == before["messages"]


def test_every_kind_of_change_is_used_or_a_resync() -> None:
    told = {kind for kind, _ in JOURNALED_TABLES.values()}
    rest = {kind for kind in ChangeKind if not any(kind.startswith(begin) for begin in told)}
    assert rest == {
        ChangeKind.DOMAIN_CHANGED,
        ChangeKind.LIMIT_REACHED,
        ChangeKind.RESYNC,
        ChangeKind.THREAD_CHANGED,  # what is no news of messages: mute, and being merged
    }
    assert journal.PLATFORM == 0
