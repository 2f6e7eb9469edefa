"""The administrative log: that it is written, by whom it is read, and what it never holds."""

import json
from datetime import timedelta
from typing import Any

import pytest
from sqlalchemy import select
from sqlmodel import col

from graph.types import global_ids
from mail.maintenance import housekeeping
from models.admin.admin_log import AdminLogEntry
from models.domains.tables import Domain
from models.runtime.environment import Environment
from models.store.columns import select_columns
from models.users.roles import Role, Scope
from models.users.tables import DomainAdmin
from resolvers.admin import admin_log
from resolvers.admin.admin_log import NewAdminLogEntry
from resolvers.context import Context, Viewer
from tests.conftest import Client, Clock, make_client, make_key
from tests.support.sample_mutations import CALLS, Call
from tests.support.sample_mutations.admin_log_mutations import LOGGED, UNLOGGED
from tests.support.schema.naming_rules import auth
from tests.support.schema.printed_schema import SDL

LIST = """query ($actor: UserRef, $targetId: ID, $mutation: String, $since: DateTime,
    $until: DateTime, $first: Int, $after: String, $last: Int, $before: String) {
  adminLog(actor: $actor, targetId: $targetId, mutation: $mutation, since: $since, until: $until,
      first: $first, after: $after, last: $last, before: $before) {
    totalCount nodes { id at actor role ip mutation targetId before after reason
      target { __typename id } }
    pageInfo { hasNextPage startCursor endCursor } } }"""


async def entries(world: Environment) -> list[Any]:
    asked = select(*select_columns(AdminLogEntry)).order_by(
        col(AdminLogEntry.at), col(AdminLogEntry.id)
    )
    return list(await world.database.read(asked))


async def listed(client: Client, **ask: Any) -> list[Any]:
    page = (await client(LIST, **ask))["adminLog"]
    if "first" not in ask and "last" not in ask:
        assert page["totalCount"] == len(page["nodes"])
    return list(page["nodes"])


async def write(
    world: Environment, *done: NewAdminLogEntry, viewer: Viewer | None = None, **more: Any
) -> None:
    viewer = viewer or Viewer(role=Role.ROOT, scopes=frozenset({Scope.MASTER}))
    ctx = Context(world, viewer, **more)
    async with ctx.write_session() as session:
        await admin_log.log_changes(ctx, session, *done)


# what is written


def test_every_mutation_of_administrators_is_in_the_list() -> None:
    assert SDL.mutation_type
    administrative = {
        name
        for name, field in SDL.mutation_type.fields.items()
        if auth(field).get("role") in ("DOMAIN_ADMIN", "ADMIN", "ROOT")
    }
    assert administrative - set(LOGGED) - set(UNLOGGED) == set()
    assert (set(LOGGED) | set(UNLOGGED)) - set(SDL.mutation_type.fields) == set()
    assert set(LOGGED) & set(UNLOGGED) == set()


async def prepared(name: str, ada: Client, root: Client) -> tuple[Call, Client]:
    logged = LOGGED[name]
    call = await (logged.prepare or CALLS[name])(ada, root)
    return call, call.by or root


@pytest.mark.parametrize("name", LOGGED)
async def test_a_mutation_writes_what_it_did_and_why(name: str, ada: Client, root: Client) -> None:
    call, client = await prepared(name, ada, root)
    before = {row.id for row in await entries(ada.world)}
    done = await call(client, reason="asked for by phone")
    assert done["errors"] == []
    written = [row for row in await entries(ada.world) if row.id not in before]
    assert written
    logged = LOGGED[name]
    for row in written:
        assert (row.mutation, row.target_kind) == (name, logged.kind)
        assert row.actor == (call.by.user.username if call.by else "key root")
        assert row.reason == "asked for by phone"
        assert set(logged.before) <= set(row.before or ())
        assert set(logged.after) <= set(row.after or ())
        assert "correct horse" not in json.dumps([row.before, row.after])


@pytest.mark.parametrize("name", LOGGED)
async def test_a_trial_and_a_refusal_write_nothing(name: str, ada: Client, root: Client) -> None:
    call, client = await prepared(name, ada, root)
    before = await entries(ada.world)
    assert (await call(client, validateOnly=True))["errors"] == []
    refused = await call(client, reason="a bell: \a")
    assert [error["path"] for error in refused["errors"]] == [["options", "reason"]]
    assert await entries(ada.world) == before


async def test_what_one_does_with_ones_own_is_not_administration(ada: Client) -> None:
    document = 'mutation { apiKeyCreate(input: {name: "x"}) { apiKey { id } errors { code } } }'
    before = await entries(ada.world)
    key = (await ada(document))["apiKeyCreate"]["apiKey"]["id"]
    deletion = "mutation ($ids: [ID!]!) { apiKeyDelete(input: {ids: $ids}) { deletedIds } }"
    assert (await ada(deletion, ids=[key]))["apiKeyDelete"]["deletedIds"] == [key]
    assert await entries(ada.world) == before


async def test_who_acts_as_somebody_is_named(ada: Client, bob: Client) -> None:
    viewer = Viewer(ada.user.id, Role.USER, frozenset({Scope.MASTER}), actor_id=bob.user.id)
    await write(ada.world, NewAdminLogEntry("x"), viewer=viewer, client_ip="192.0.2.7")
    row = (await entries(ada.world))[-1]
    assert (row.actor, row.actor_id, row.ip) == ("bob", bob.user.id, "192.0.2.7")


async def test_many_entries_cost_as_many_statements_as_one(
    world: Environment, statements: list[str]
) -> None:
    costs = []
    for many in (1, 500):
        del statements[:]
        await write(world, *(NewAdminLogEntry("userUpdate", "User", n) for n in range(1, many + 1)))
        costs.append(len(statements))
    assert costs[0] == costs[1]


# reading


async def test_pages_meet_both_ways(root: Client, clock: Clock) -> None:
    for n in range(5):
        await write(root.world, NewAdminLogEntry(f"step{n}"))
        clock.tick(seconds=n % 2)
    names = [f"step{n}" for n in (4, 3, 2, 1, 0)]
    first = (await root(LIST, first=2))["adminLog"]
    assert [node["mutation"] for node in first["nodes"]] == names[:2]
    rest = await listed(root, first=9, after=first["pageInfo"]["endCursor"])
    assert [node["mutation"] for node in rest] == names[2:]
    last = (await root(LIST, last=2))["adminLog"]
    assert [node["mutation"] for node in last["nodes"]] == names[3:]
    back = await listed(root, last=9, before=last["pageInfo"]["startCursor"])
    assert [node["mutation"] for node in back] == names[:3]
    answer = await root.raw(LIST, after=first["pageInfo"]["endCursor"], mutation="step1")
    assert answer["errors"][0]["extensions"] == {"code": "BAD_CURSOR"}


async def test_every_condition_narrows(
    root: Client, ada: Client, bob: Client, clock: Clock
) -> None:
    clock.tick(days=1)
    start = clock()
    viewer = Viewer(bob.user.id, Role.ADMIN)
    await write(root.world, NewAdminLogEntry("userUpdate", "User", ada.user.id))
    clock.tick(hours=1)
    await write(
        root.world, NewAdminLogEntry("domainUpdate", "Domain", ada.user.domain_id), viewer=viewer
    )
    clock.tick(hours=1)
    await write(root.world, NewAdminLogEntry("userUpdate", "User", bob.user.id), viewer=viewer)
    hour = [(start + timedelta(hours=n)).isoformat() for n in range(3)]
    expected: list[tuple[dict[str, Any], int]] = [
        ({"actor": {"username": "bob"}}, 2),
        ({"actor": {"id": global_ids.encode("User", bob.user.id)}}, 2),
        ({"actor": {"username": "nobody"}}, 0),
        ({"actor": {"id": global_ids.encode("User", 5)}}, 0),
        ({"targetId": global_ids.encode("User", ada.user.id)}, 2),  # made, and changed
        ({"targetId": global_ids.encode("Domain", ada.user.id)}, 0),
        ({"mutation": "userUpdate"}, 2),
        ({"mutation": "userUpdate", "actor": {"username": "bob"}}, 1),
        ({"mutation": "nothing"}, 0),
        ({"since": hour[1]}, 2),
        ({"since": hour[0], "until": hour[2]}, 2),
        ({"until": hour[0], "mutation": "userUpdate"}, 0),
    ]
    for conditions, many in expected:
        assert len(await listed(root, **conditions)) == many, conditions
    for odd in ({"mutation": "x" * 129}, {"mutation": "a\0"}, {"since": "x"}, {"targetId": "x"}):
        answer = await root.raw(LIST, **odd)
        code = answer["errors"][0]["extensions"]["code"]
        assert code in ("BAD_USER_INPUT", "BAD_ID"), odd


NODE = "query ($id: ID!) { node(id: $id) { __typename ... on AdminLogEntry { mutation } } }"


async def test_a_domain_administrator_reads_of_the_own_domains_only(
    root: Client, ada: Client
) -> None:
    world, at = root.world, root.world.now()
    chief = await make_client(world, root.http, "chief", role=Role.DOMAIN_ADMIN)
    async with world.write_session() as session:
        session.add(Domain(id=7, name="far.example", created_at=at, updated_at=at))
        await session.flush()
        session.add(DomainAdmin(user_id=chief.user.id, domain_id=ada.user.domain_id or 0))
    before = len(await listed(chief))
    await write(
        world,
        NewAdminLogEntry(
            "userUpdate", "User", ada.user.id, ada.user.domain_id, after={"name": "Ada"}
        ),
        NewAdminLogEntry("userUpdate", "User", 99, 7),
        NewAdminLogEntry("settingSet", "Setting"),
    )
    seen = (await listed(chief))[: len(await listed(chief)) - before]
    assert [(node["after"], node["target"]) for node in seen] == [
        ({"name": "Ada"}, {"__typename": "User", "id": global_ids.encode("User", ada.user.id)})
    ]
    foreign = {"id": global_ids.encode("User", 99)}["id"]
    assert await listed(chief, targetId=foreign) == []
    rows = [row for row in await entries(world) if row.mutation in ("userUpdate", "settingSet")]
    for client, visible in ((root, [1, 1, 1]), (chief, [1, 0, 0]), (ada, [0, 0, 0])):
        found = [
            (await client(NODE, id=global_ids.encode("AdminLogEntry", row.id)))["node"]
            for row in rows
        ]
        assert [int(each is not None) for each in found] == visible
    answer = await ada.raw(LIST)
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"
    scopes = [Scope.MAIL]
    secret = await make_key(world, "mail", role=Role.ROOT, scopes=scopes)
    answer = await Client(root.http, world, root.user, secret).raw(LIST)
    assert answer["errors"][0]["extensions"]["code"] == "FORBIDDEN"


async def test_what_is_gone_is_still_named(root: Client) -> None:
    await write(
        root.world,
        NewAdminLogEntry("userDelete", "User", 99),
        NewAdminLogEntry("settingSet", "Setting"),
    )
    setting, user = await listed(root)
    assert (user["targetId"], user["target"]) == (global_ids.encode("User", 99), None)
    assert (setting["targetId"], setting["target"]) == (None, None)


async def test_many_entries_and_targets_cost_the_same(
    root: Client, ada: Client, bob: Client, statements: list[str]
) -> None:
    async def cost() -> int:
        del statements[:]
        await root(LIST, first=50)
        return len([sent for sent in statements if "api_keys" not in sent])

    costs = [await cost()]
    for user in (ada, bob) * 10:
        await write(root.world, NewAdminLogEntry("userUpdate", "User", user.user.id))
    assert [await cost(), await cost()] == costs * 2


async def test_entries_are_kept_for_as_long_as_the_setting_says(
    world: Environment, clock: Clock
) -> None:
    await write(world, NewAdminLogEntry("old"))
    clock.tick(days=364)
    await write(world, NewAdminLogEntry("new"))
    assert (await housekeeping.run_round(world, sweep=False)).entries == 0
    clock.tick(days=1)
    assert (await housekeeping.run_round(world, sweep=False)).entries == 1
    assert [row.mutation for row in await entries(world)] == ["new"]


# what it never holds

NAMES = """
    password passwords hashedPassword temporary_password newPassword2 PASSWORD userpassword
    passwordHash secret clientSecret seed totpSeed token accessToken tokens digest privateKey
    secret_key recoveryCodes otp pin credential proof
""".split()  # noqa: SIM905 - a list of lines would be a page long


async def test_whose_address_it_was_is_believed_from_keys_only(root: Client, ada: Client) -> None:
    """A front end speaks for the person behind it; a person does not for somebody else."""
    given = {"clientIp": "198.51.100.7", "sessionId": "panel"}
    made = await CALLS["userCreate"](ada, root)
    assert (await made(root, **given))["errors"] == []
    assert (await entries(root.world))[-1].ip == "198.51.100.7"
    chief = await make_client(root.world, root.http, "chief", role=Role.DOMAIN_ADMIN)
    async with root.world.write_session() as session:
        session.add(DomainAdmin(user_id=chief.user.id, domain_id=ada.user.domain_id or 0))
    other = Call(made.name, {**made.input, "address": "zoe@example.org"})
    assert (await other(chief, **given))["errors"] == []
    row = (await entries(root.world))[-1]
    assert (row.actor, row.role) == ("chief", Role.DOMAIN_ADMIN)
    assert row.ip != "198.51.100.7"
