"""Keys that are good for less: domains, operations, networks; and that none goes further."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlmodel import col

from models.auth.credentials import ApiKey
from models.auth.security_log import AuthEvent
from models.domains.tables import Domain
from models.errors import Forbidden, Invalid, NotFound, Refused, Unauthenticated
from models.runtime.environment import World
from models.store.columns import table_of
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import DomainAdmin
from resolvers.auth import api_keys, authentication
from resolvers.auth.api_keys import KeyChange, NewKey
from resolvers.context import Context, Viewer
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from tests.auth.conftest import MASTER, Town
from tests.auth.test_http_credentials import sent
from tests.conftest import Client, make_key
from tests.support.accounts.domain_admins import make_domain_admin

CREATE = """
mutation ($input: ApiKeyCreateInput!) {
  apiKeyCreate(input: $input) {
    secret errors { code path index }
    apiKey { id operations allowedIps active domains { name } lastUsedIp }
  }
}
"""
UPDATE = """
mutation ($input: ApiKeyUpdateInput!) {
  apiKeyUpdate(input: $input) {
    apiKeys { name active allowedIps expiresAt } errors { code path index }
  }
}
"""


async def made(town: Town, ctx: Context, **facts: Any) -> tuple[ApiKey, str, Viewer]:
    row, secret = await api_keys.create_key(ctx, NewKey("k", **facts))
    return row, secret, await town.viewer(secret)


async def charged(town: Town, name: str = "dora", **more: Any) -> Context:
    """A DOMAIN_ADMIN of example.org."""
    permissions = [AdminPermission.LOGIN_AS.value]
    key = await town.user(name, role=Role.DOMAIN_ADMIN, admin_permissions=permissions, **more)
    async with town.world.write() as session:
        session.add(DomainAdmin(user_id=key, domain_id=town.domain_id))
    return Context(town.world, await town.viewer(await town.token(name)))


async def another_domain(town: Town) -> int:
    key = town.world.key()
    async with town.world.write() as session:
        session.add(
            Domain(id=key, name="other.example", created_at=town.clock(), updated_at=town.clock())
        )
    return key


async def test_an_admins_key_for_domains_is_a_domain_admins(town: Town) -> None:
    boss = town.by("ada", Role.ADMIN)
    _, _, viewer = await made(town, boss, role=Role.ADMIN, domains=[town.domain_id])
    assert (viewer.user_id, viewer.role) == (0, Role.DOMAIN_ADMIN)
    assert viewer.administers == {town.domain_id}
    assert viewer.permissions == frozenset(AdminPermission)
    for facts in ({"user_id": town.users["ada"], "role": Role.ADMIN}, {"role": Role.USER}):
        with pytest.raises(Invalid):
            await made(town, boss, domains=[town.domain_id], **facts)
    with pytest.raises(NotFound):
        await made(town, boss, role=Role.ADMIN, domains=[7])


async def test_a_domain_admins_key_has_no_domain_more(town: Town) -> None:
    dora, other = await charged(town), await another_domain(town)
    role = Role.DOMAIN_ADMIN
    for domains in ([other], [town.domain_id, other]):
        with pytest.raises(NotFound):
            await made(town, dora, role=role, domains=domains)
    _, secret, viewer = await made(town, dora, role=role, domains=[town.domain_id])
    assert (viewer.user_id, viewer.administers) == (0, frozenset({town.domain_id}))
    assert viewer.permissions == {AdminPermission.LOGIN_AS}
    narrow = Context(town.world, viewer)
    with pytest.raises(Invalid):  # nobody's account, and so no key of its own without domains
        await made(town, narrow, role=role)
    with pytest.raises(Refused):
        await made(town, narrow, role=role, user_id=town.users["dora"])
    await town.change("dora", disabled=True)
    town.clock.tick(seconds=5)
    assert await town.refused(secret)


async def test_nobody_makes_a_key_of_a_neighbour_who_administers_more(town: Town) -> None:
    dora, other = await charged(town), await another_domain(town)
    rita = await town.user("rita", role=Role.DOMAIN_ADMIN, domain_id=town.domain_id)
    async with town.world.write() as session:
        session.add(DomainAdmin(user_id=rita, domain_id=other))
    for role in (Role.DOMAIN_ADMIN, Role.USER):
        with pytest.raises(Forbidden):
            await made(town, dora, role=role, user_id=rita)
    await town.change("ada", domain_id=town.domain_id)
    _, _, viewer = await made(town, dora, user_id=town.users["ada"])
    assert viewer.user_id == town.users["ada"]


@pytest.mark.parametrize(
    "facts",
    [
        {"role": Role.ADMIN},
        {"role": Role.DOMAIN_ADMIN},
        {"operations": ["viewer", "users"]},
        {"allowed_ips": ["192.0.2.0/23"]},
        {"allowed_ips": ["2001:db8::/32"]},
        {"expires_at": timedelta(days=2)},
        {"user_id": "bob"},
    ],
)
async def test_a_key_makes_none_that_goes_further(town: Town, facts: dict[str, Any]) -> None:
    await town.user("bob")
    row, _, viewer = await made(
        town,
        town.by("ada"),
        operations=["viewer", "apiKeyCreate", "apiKeyUpdate"],
        allowed_ips=["192.0.2.0/24"],
        expires_at=town.clock() + timedelta(days=1),
    )
    ctx = Context(town.world, viewer)
    if isinstance(facts.get("expires_at"), timedelta):
        facts = {"expires_at": town.clock() + facts["expires_at"]}
    if "user_id" in facts:
        facts = {"user_id": town.users["bob"]}
    with pytest.raises((Forbidden, NotFound)):
        await api_keys.create_key(ctx, NewKey("k", **facts))
    child, _ = await api_keys.create_key(ctx, NewKey("k"))
    assert child.operations == sorted(row.operations)
    assert (child.allowed_ips, child.expires_at) == (row.allowed_ips, row.expires_at)


async def test_a_narrow_scope_or_a_reader_makes_no_key_at_all(town: Town) -> None:
    for facts in ({"scopes": [Scope.MAIL]}, {"read_only": True}):
        _, _, viewer = await made(town, town.by("ada"), **facts)
        with pytest.raises(Forbidden):
            await api_keys.create_key(Context(town.world, viewer), NewKey("k"))


async def test_a_key_takes_nothing_off_that_it_is_bound_by(town: Town) -> None:
    row, secret, viewer = await made(
        town,
        town.by("ada"),
        allowed_ips=["192.0.2.0/24"],
        expires_at=town.clock() + timedelta(days=1),
    )
    ctx, later = Context(town.world, viewer), town.clock() + timedelta(days=2)
    for change in (
        KeyChange(allowed_ips=[]),
        KeyChange(allowed_ips=["0.0.0.0/0"]),
        KeyChange(expires_at=later),
        KeyChange(endless=True),
    ):
        with pytest.raises(Forbidden):
            await api_keys.update_keys(ctx, [row.id], change)
    narrower = KeyChange("n", allowed_ips=["192.0.2.1/32"], expires_at=viewer.ends_at)
    (now,) = await api_keys.update_keys(ctx, [row.id], narrower)
    assert (now.name, now.allowed_ips) == ("n", ["192.0.2.1/32"])
    assert not await town.refused(secret)
    (now,) = await api_keys.update_keys(town.by("ada"), [row.id], KeyChange(endless=True))
    assert now.expires_at is None


async def test_nobody_changes_a_key_above_themselves(town: Town) -> None:
    await town.user("rex", role=Role.ROOT)
    rexs, _ = await api_keys.create_key(town.by("rex", Role.ROOT), NewKey("r"))
    roots, _ = await api_keys.create_key(town.by("rex", Role.ROOT), NewKey("r", role=Role.ROOT))
    mine, secret = await api_keys.create_key(town.by("ada"), NewKey("m"))
    off = KeyChange(active=False)
    for ctx, key in (
        (town.by("ada", Role.ADMIN), rexs.id),
        (town.by("ada", Role.ADMIN), roots.id),
        (town.by("ada", scopes=frozenset({Scope.SETTINGS})), mine.id),
    ):
        with pytest.raises(Forbidden):
            await api_keys.update_keys(ctx, [mine.id, key], off)
    await town.user("bob")
    with pytest.raises(NotFound):
        await api_keys.update_keys(town.by("bob"), [mine.id], off)
    assert not await town.refused(secret)
    await api_keys.update_keys(town.by("ada"), [mine.id], off)
    assert await town.refused(secret)
    await api_keys.update_keys(town.by("ada"), [mine.id], KeyChange(active=True))
    assert not await town.refused(secret)


async def test_a_key_is_good_from_its_networks_alone(town: Town) -> None:
    row, secret, _ = await made(town, town.by("ada"), allowed_ips=["192.0.2.0/24", "2001:db8::/64"])
    headers = {"x-api-key": secret}
    for ip in ("192.0.2.255", "2001:db8::7", "::ffff:192.0.2.1"):
        assert (await authentication.sign_in(town.world, headers, ip=ip)).api_key_id == row.id
    for elsewhere in ("192.0.3.0", "2001:db8:0:1::", None, "x"):
        with pytest.raises(Unauthenticated):
            await authentication.sign_in(town.world, headers, ip=elsewhere)
    await authentication.settle(town.world)
    table = table_of(AuthEvent)
    asked = select(table).where(col(AuthEvent.result) == "fail")
    rows = await town.world.database.read(asked)
    assert {(event.action, event.user_id) for event in rows} == {("api key", town.users["ada"])}
    (noted,) = await api_keys.keys_by_ids(town.by("ada"), [row.id])
    assert noted
    assert noted.last_used_ip == "192.0.2.1"  # of the first use, which is noted once an hour


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"operations": ["users", "nothing"]}, ["operations"]),
        ({"operations": ["x" * 10_000]}, ["operations"]),
        ({"operations": ["viewer"] * 101}, ["operations"]),
        ({"domains": [{"name": "nowhere.example"}]}, ["domains"]),
        ({"allowedIps": ["192.0.2.0/24"] * 101}, ["allowedIps"]),
        ({"name": "x" * 10_000}, ["name"]),
        ({"name": "a\nb"}, ["name"]),
    ],
)
async def test_what_makes_no_sense_names_its_place(
    ada: Client, given: dict[str, Any], path: list[str]
) -> None:
    done = (await ada(CREATE, input={"name": "k", **given}))["apiKeyCreate"]
    assert [error["path"] for error in done["errors"]] == [path]


async def test_a_key_for_operations_runs_no_others(ada: Client, http: httpx.AsyncClient) -> None:
    given = {"name": "k", "operations": ["viewer", "mailbox"], "allowedIps": ["127.0.0.1"]}
    done = (await ada(CREATE, input=given))["apiKeyCreate"]
    assert done["apiKey"]["operations"] == ["mailbox", "viewer"]
    assert done["apiKey"]["allowedIps"] == ["127.0.0.1/32"]
    secret = done["secret"]
    answer = await sent(http, "{ viewer { role } __typename }", secret)
    assert answer["data"]["viewer"] == {"role": "USER"}
    for refused in (
        "{ user { id } }",
        "{ viewer { role } ... on Query { user { id } } }",
        "{ ...F } fragment F on Query { __schema { queryType { name } } }",
        "mutation { tokenRevoke(input: {}) { revoked } }",
    ):
        (error,) = (await sent(http, refused, secret))["errors"]
        assert error["extensions"]["code"] == "FORBIDDEN"
    headers = {"Authorization": f"Bearer {secret}"}
    assert (await http.post("/rest/uploads", content=b"x", headers=headers)).status_code == 403
    elsewhere = {**headers, "X-Client-IP": "127.0.0.1", "X-Forwarded-For": "127.0.0.1"}
    other = await ada(UPDATE, input={"ids": [done["apiKey"]["id"]], "allowedIps": ["10.0.0.0/8"]})
    assert other["apiKeyUpdate"]["apiKeys"][0]["allowedIps"] == ["10.0.0.0/8"]
    body = {"query": "{ viewer { role } }"}
    assert (await http.post("/graphql", json=body, headers=elsewhere)).status_code == 401


async def test_an_update_says_what_it_changes(ada: Client, bob: Client) -> None:
    key = (await ada(CREATE, input={"name": "k"}))["apiKeyCreate"]["apiKey"]["id"]
    for client, given, code in (
        (ada, {}, "VALIDATION"),
        (ada, {"name": ""}, "VALIDATION"),
        (ada, {"expiresAt": "2029-01-01T00:00:00Z"}, "VALIDATION"),
        (bob, {"active": False}, "NOT_FOUND"),
    ):
        done = (await client(UPDATE, input={"ids": [key], **given}))["apiKeyUpdate"]
        assert [error["code"] for error in done["errors"]] == [code], given


async def test_a_key_for_domains_stays_in_them(
    world: World, http: httpx.AsyncClient, root: Client, ada: Client
) -> None:
    dora = await make_domain_admin(world, http, "dora", list(AdminPermission))
    given = {"name": "k", "role": "ADMIN", "domains": [{"name": "example.org"}]}
    done = (await root(CREATE, input=given))["apiKeyCreate"]
    assert done["errors"] == []
    assert done["apiKey"]["domains"] == [{"name": "example.org"}]
    asked = "{ viewer { role user { id } administers { name } apiKey { name } adminPermissions } }"
    viewer = (await sent(http, asked, done["secret"]))["data"]["viewer"]
    assert viewer == {
        "role": "DOMAIN_ADMIN",
        "user": None,
        "administers": [{"name": "example.org"}],
        "apiKey": {"name": "k"},
        "adminPermissions": sorted(AdminPermission),
    }
    for wider in ({"role": "ADMIN"}, {"role": "DOMAIN_ADMIN"}, {"role": "ADMIN", **given}):
        (error,) = (await sent(http, CREATE, done["secret"], input={**wider, "name": "w"}))["data"][
            "apiKeyCreate"
        ]["errors"]
        assert error["code"] in {"FORBIDDEN", "VALIDATION"}
    wide = {"name": "w", "role": "DOMAIN_ADMIN", "domains": [{"name": "example.org"}]}
    (error,) = (await ada(CREATE, input=wide))["apiKeyCreate"]["errors"]
    assert error["code"] == "NOT_FOUND"
    assert (await dora(CREATE, input=wide))["apiKeyCreate"]["errors"] == []


async def test_a_key_that_lost_its_ground_says_less(town: Town) -> None:
    """What the maker may no longer do, the key may not."""
    dora = await charged(town)
    _, secret, viewer = await made(town, dora, role=Role.DOMAIN_ADMIN)
    assert viewer.role is Role.DOMAIN_ADMIN
    await town.change("dora", role=Role.USER)
    town.clock.tick(seconds=5)
    now = await town.viewer(secret)
    assert (now.role, now.administers) == (Role.USER, frozenset())
    assert await authentication.ended(town.world, viewer)
    assert replace(now, permissions=frozenset()).scopes == MASTER


async def test_the_key_of_nobody_is_in_the_administrative_log(root: Client, world: World) -> None:
    from models.admin.admin_log import AdminLogEntry

    await make_key(world, "before")
    await root(CREATE, input={"name": "k", "role": "ADMIN"})
    rows = await world.database.read(select(table_of(AdminLogEntry)))
    assert [(row.mutation, row.target_kind) for row in rows] == [("apiKeyCreate", "ApiKey")]


@pytest.mark.usefixtures("ada")
async def test_an_admin_makes_a_domain_admins_key(
    over: Client, root: Client, world: World, http: httpx.AsyncClient
) -> None:
    far = NewUser(username="far", address="far@far.example", password_disabled=True)
    await creation_create.create(Context(world, Viewer(role=Role.ROOT, scopes=MASTER)), far)
    users = "{ users(first: 10) { nodes { username } } }"
    given = {"name": "k", "role": "DOMAIN_ADMIN", "domains": [{"name": "far.example"}]}
    for client in (over, root):
        made = (await client(CREATE, input=given))["apiKeyCreate"]
        assert made["errors"] == []
        assert made["apiKey"]["domains"] == [{"name": "far.example"}]
        key = Client(http, world, root.user, made["secret"])
        assert (await key(users))["users"]["nodes"] == [{"username": "far"}]
    unknown = {**given, "domains": [{"name": "nowhere.example"}]}
    (error,) = (await over(CREATE, input=unknown))["apiKeyCreate"]["errors"]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["domains"])
    chief = await make_domain_admin(world, http, "chief")
    (error,) = (await chief(CREATE, input=given))["apiKeyCreate"]["errors"]
    assert error["code"] == "NOT_FOUND"
    other = {**given, "user": {"username": "ada"}}
    (error,) = (await over(CREATE, input=other))["apiKeyCreate"]["errors"]
    assert error["code"] == "FORBIDDEN"
