"""The audit log: which mutations write entries, who reads them, and what they never contain."""

import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from graph.types import global_ids
from mail.maintenance import housekeeping
from models.admin.audit_log import AuditLogEntry
from models.domains.tables import Domain
from models.runtime.environment import Environment
from models.store.columns import select_columns
from models.users.roles import Role, Scope
from models.users.tables import DomainAdmin
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.context import Context
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, ManualClock, make_api_key, make_client
from tests.support.sample_mutations import SAMPLE_CALLS, MutationCall
from tests.support.sample_mutations.audit_log_mutations import (
    AUDIT_LOG_EXPECTATIONS,
    UNLOGGED_MUTATIONS,
)
from tests.support.schema.log_ids import assert_logs_have_no_database_ids
from tests.support.schema.naming_rules import auth_arguments
from tests.support.schema.printed_schema import SDL

LIST = """query ($filter: AuditLogFilter, $first: Int, $after: String, $last: Int,
    $before: String) {
  auditLog(filter: $filter, first: $first, after: $after, last: $last, before: $before) {
    totalCount nodes { id at actor role ip mutation targetId before after reason
      target { __typename id } }
    pageInfo { hasNextPage startCursor endCursor } } }"""


async def load_entries(environment: Environment) -> list[Any]:
    statement = select(*select_columns(AuditLogEntry)).order_by(
        col(AuditLogEntry.at), col(AuditLogEntry.id)
    )
    return list(await environment.database.read(statement))


PAGE_ARGUMENTS = ("first", "last", "after")


async def list_entries(client: GraphQLClient, **variables: Any) -> list[Any]:
    page_arguments = {name: variables.pop(name) for name in PAGE_ARGUMENTS if name in variables}
    page = (await client(LIST, filter=variables or None, **page_arguments))["auditLog"]
    if not page_arguments:
        assert page["totalCount"] == len(page["nodes"])
    return list(page["nodes"])


async def write_entries_unless_full(
    environment: Environment,
    *new_entries: NewAuditLogEntry,
    viewer: Viewer | None = None,
    **extra: Any,
) -> None:
    viewer = viewer or Viewer(role=Role.ROOT, scopes=frozenset({Scope.FULL}))
    ctx = Context(environment, viewer, **extra)
    async with ctx.write_session() as session:
        await audit_log.insert_audit_log_entries(ctx, session, *new_entries)


def test_every_administrative_mutation_has_a_log_case() -> None:
    assert SDL.mutation_type
    administrative = {
        name
        for name, field in SDL.mutation_type.fields.items()
        if auth_arguments(field).get("role") in ("DOMAIN_ADMIN", "ADMIN", "ROOT")
    }
    assert administrative - set(AUDIT_LOG_EXPECTATIONS) - set(UNLOGGED_MUTATIONS) == set()
    assert (set(AUDIT_LOG_EXPECTATIONS) | set(UNLOGGED_MUTATIONS)) - set(
        SDL.mutation_type.fields
    ) == set()
    assert set(AUDIT_LOG_EXPECTATIONS) & set(UNLOGGED_MUTATIONS) == set()


async def prepare_call(
    name: str, ada: GraphQLClient, root: GraphQLClient
) -> tuple[MutationCall, GraphQLClient]:
    logged = AUDIT_LOG_EXPECTATIONS[name]
    call = await (logged.prepare or SAMPLE_CALLS[name])(ada, root)
    return call, call.other_caller or root


@pytest.mark.parametrize("name", AUDIT_LOG_EXPECTATIONS)
async def test_only_a_successful_mutation_writes_changes_and_reason(
    name: str, ada: GraphQLClient, root: GraphQLClient
) -> None:
    call, client = await prepare_call(name, ada, root)
    before = await load_entries(ada.environment)
    assert (await call(client, validateOnly=True))["errors"] == []
    refused = await call(client, reason="a bell: \a")
    assert [error["path"] for error in refused["errors"]] == [["options", "reason"]]
    assert await load_entries(ada.environment) == before

    payload = await call(client, reason="asked for by phone")
    assert payload["errors"] == []
    ids_before = {row.id for row in before}
    new_entries = [row for row in await load_entries(ada.environment) if row.id not in ids_before]
    assert new_entries
    logged = AUDIT_LOG_EXPECTATIONS[name]
    for row in new_entries:
        assert (row.mutation, row.target_kind) == (name, logged.target_type)
        assert row.actor == (call.other_caller.user.username if call.other_caller else "key root")
        assert row.reason == "asked for by phone"
        assert set(logged.before) <= set(row.before or ())
        assert set(logged.after) <= set(row.after or ())
        assert "correct horse" not in json.dumps([row.before, row.after])
    await assert_logs_have_no_database_ids(root)


async def test_change_of_own_data_writes_no_entry(ada: GraphQLClient) -> None:
    document = 'mutation { apiKeyCreate(input: {name: "x"}) { apiKey { id } errors { code } } }'
    before = await load_entries(ada.environment)
    key_id = (await ada(document))["apiKeyCreate"]["apiKey"]["id"]
    deletion = (
        "mutation ($keys: [ApiKeyRef!]!) { apiKeyDelete(input: {apiKeys: $keys}) { deletedIds } }"
    )
    assert (await ada(deletion, keys=[{"id": key_id}]))["apiKeyDelete"]["deletedIds"] == [key_id]
    assert await load_entries(ada.environment) == before


async def test_entry_names_the_administrator_who_acts_as_a_user(
    ada: GraphQLClient, bob: GraphQLClient
) -> None:
    viewer = Viewer(ada.user.id, Role.USER, frozenset({Scope.FULL}), actor_id=bob.user.id)
    await write_entries_unless_full(
        ada.environment, NewAuditLogEntry("x"), viewer=viewer, client_ip="192.0.2.7"
    )
    row = (await load_entries(ada.environment))[-1]
    assert (row.actor, row.actor_id, row.ip) == ("bob", bob.user.id, "192.0.2.7")


async def test_writing_entries_needs_a_constant_number_of_statements(
    environment: Environment, statements: list[str]
) -> None:
    statement_counts = []
    for entry_count in (1, 500):
        del statements[:]
        await write_entries_unless_full(
            environment,
            *(NewAuditLogEntry("userUpdate", "User", n) for n in range(1, entry_count + 1)),
        )
        statement_counts.append(len(statements))
    assert statement_counts[0] == statement_counts[1]


async def test_pagination_works_in_both_directions(root: GraphQLClient, clock: ManualClock) -> None:
    for n in range(5):
        await write_entries_unless_full(root.environment, NewAuditLogEntry(f"step{n}"))
        clock.tick(seconds=n % 2)
    names = [f"step{n}" for n in (4, 3, 2, 1, 0)]
    first = (await root(LIST, first=2))["auditLog"]
    assert [node["mutation"] for node in first["nodes"]] == names[:2]
    rest = await list_entries(root, first=9, after=first["pageInfo"]["endCursor"])
    assert [node["mutation"] for node in rest] == names[2:]
    last = (await root(LIST, last=2))["auditLog"]
    assert [node["mutation"] for node in last["nodes"]] == names[3:]
    previous = (await root(LIST, last=9, before=last["pageInfo"]["startCursor"]))["auditLog"][
        "nodes"
    ]
    assert [node["mutation"] for node in previous] == names[:3]
    answer = await root.execute(
        LIST, after=first["pageInfo"]["endCursor"], filter={"mutation": "step1"}
    )
    assert answer["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}


async def test_list_applies_each_filter(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, clock: ManualClock
) -> None:
    clock.tick(days=1)
    start = clock()
    viewer = Viewer(bob.user.id, Role.ADMIN)
    await write_entries_unless_full(
        root.environment, NewAuditLogEntry("userUpdate", "User", ada.user.id)
    )
    clock.tick(hours=1)
    await write_entries_unless_full(
        root.environment,
        NewAuditLogEntry("domainUpdate", "Domain", ada.user.domain_id),
        viewer=viewer,
    )
    clock.tick(hours=1)
    await write_entries_unless_full(
        root.environment, NewAuditLogEntry("userUpdate", "User", bob.user.id), viewer=viewer
    )
    hours = [(start + timedelta(hours=n)).isoformat() for n in range(3)]
    expected: list[tuple[dict[str, Any], int]] = [
        ({"actor": {"username": "bob"}}, 2),
        ({"actor": {"id": global_ids.encode("User", bob.user.id)}}, 2),
        ({"actor": {"username": "nobody"}}, 0),
        ({"actor": {"id": global_ids.encode("User", 5)}}, 0),
        ({"targetId": global_ids.encode("User", ada.user.id)}, 2),  # created and updated
        ({"targetId": global_ids.encode("Domain", ada.user.id)}, 0),
        ({"mutation": "userUpdate"}, 2),
        ({"mutation": "userUpdate", "actor": {"username": "bob"}}, 1),
        ({"mutation": "nothing"}, 0),
        ({"since": hours[1]}, 2),
        ({"since": hours[0], "before": hours[2]}, 2),
        ({"before": hours[0], "mutation": "userUpdate"}, 0),
    ]
    for conditions, count in expected:
        assert len(await list_entries(root, **conditions)) == count, conditions
    for invalid in (
        {"mutation": "x" * 129},
        {"mutation": "a\0"},
        {"since": "x"},
        {"targetId": "x"},
    ):
        answer = await root.execute(LIST, filter=invalid)
        code = answer["errors"][0]["extensions"]["code"]
        assert code in ("BAD_USER_INPUT", "BAD_ID"), invalid


NODE = "query ($id: ID!) { node(id: $id) { __typename ... on AuditLogEntry { mutation } } }"


async def test_domain_admin_reads_entries_of_own_domains_only(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    environment, now = root.environment, root.environment.now()
    domain_admin = await make_client(environment, root.http, "chief", role=Role.DOMAIN_ADMIN)
    async with environment.write_session() as session:
        session.add(Domain(id=7, name="far.example", created_at=now, updated_at=now))
        await session.flush()
        session.add(DomainAdmin(user_id=domain_admin.user.id, domain_id=ada.user.domain_id or 0))
    before = len(await list_entries(domain_admin))
    await write_entries_unless_full(
        environment,
        NewAuditLogEntry(
            "userUpdate", "User", ada.user.id, ada.user.domain_id, after={"name": "Ada"}
        ),
        NewAuditLogEntry("userUpdate", "User", 99, 7),
        NewAuditLogEntry("settingSet", "Setting"),
    )
    new_entries = (await list_entries(domain_admin))[
        : len(await list_entries(domain_admin)) - before
    ]
    assert [(node["after"], node["target"]) for node in new_entries] == [
        ({"name": "Ada"}, {"__typename": "User", "id": global_ids.encode("User", ada.user.id)})
    ]
    foreign_id = {"id": global_ids.encode("User", 99)}["id"]
    assert await list_entries(domain_admin, targetId=foreign_id) == []
    rows = [
        row
        for row in await load_entries(environment)
        if row.mutation in ("userUpdate", "settingSet")
    ]
    for client, visible in ((root, [1, 1, 1]), (domain_admin, [1, 0, 0]), (ada, [0, 0, 0])):
        nodes = [
            (await client(NODE, id=global_ids.encode("AuditLogEntry", row.id)))["node"]
            for row in rows
        ]
        assert [int(node is not None) for node in nodes] == visible
    answer = await ada.execute(LIST)
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    scopes = [Scope.MAIL]
    secret = await make_api_key(environment, "mail", role=Role.ROOT, scopes=scopes)
    answer = await GraphQLClient(root.http, environment, root.user, secret).execute(LIST)
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"


async def test_entry_keeps_the_id_of_a_deleted_target(root: GraphQLClient) -> None:
    await write_entries_unless_full(
        root.environment,
        NewAuditLogEntry("userDelete", "User", 99),
        NewAuditLogEntry("settingSet", "Setting"),
    )
    setting, user = await list_entries(root)
    assert (user["targetId"], user["target"]) == (global_ids.encode("User", 99), None)
    assert (setting["targetId"], setting["target"]) == (None, None)


async def test_list_needs_a_constant_number_of_statements(
    root: GraphQLClient, ada: GraphQLClient, bob: GraphQLClient, statements: list[str]
) -> None:
    async def cost() -> int:
        del statements[:]
        await root(LIST, first=50)
        return len([statement for statement in statements if "api_keys" not in statement])

    statement_counts = [await cost()]
    for user in (ada, bob) * 10:
        await write_entries_unless_full(
            root.environment, NewAuditLogEntry("userUpdate", "User", user.user.id)
        )
    assert [await cost(), await cost()] == statement_counts * 2


async def test_entries_are_deleted_after_their_retention(
    environment: Environment, clock: ManualClock
) -> None:
    await write_entries_unless_full(environment, NewAuditLogEntry("old"))
    clock.tick(days=364)
    await write_entries_unless_full(environment, NewAuditLogEntry("new"))
    assert (await housekeeping.run_housekeeping_round(environment, sweep=False)).entries == 0
    clock.tick(days=1)
    assert (await housekeeping.run_housekeeping_round(environment, sweep=False)).entries == 1
    assert [row.mutation for row in await load_entries(environment)] == ["new"]


SECRET_FIELD_NAMES = """
    password passwords hashedPassword temporary_password newPassword2 PASSWORD userpassword
    passwordHash secret clientSecret seed totpSeed token accessToken tokens digest privateKey
    secret_key recoveryCodes otp pin credential proof
""".split()  # noqa: SIM905 - a list of lines would be a page long


async def test_client_ip_is_accepted_from_api_keys_only(
    root: GraphQLClient, ada: GraphQLClient
) -> None:
    """A front end with an API key reports the client's address.

    A user can't report another address.
    """
    options = {"clientIp": "198.51.100.7", "sessionId": "panel"}
    create_user = await SAMPLE_CALLS["userCreate"](ada, root)
    assert (await create_user(root, **options))["errors"] == []
    assert (await load_entries(root.environment))[-1].ip == "198.51.100.7"
    domain_admin = await make_client(root.environment, root.http, "chief", role=Role.DOMAIN_ADMIN)
    async with root.environment.write_session() as session:
        session.add(DomainAdmin(user_id=domain_admin.user.id, domain_id=ada.user.domain_id or 0))
    create_other_user = MutationCall(
        create_user.name, {**create_user.input, "address": "zoe@example.org"}
    )
    assert (await create_other_user(domain_admin, **options))["errors"] == []
    row = (await load_entries(root.environment))[-1]
    assert (row.actor, row.role) == ("chief", Role.DOMAIN_ADMIN)
    assert row.ip != "198.51.100.7"
