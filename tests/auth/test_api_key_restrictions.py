"""Keys that are good for less: domains, operations, networks; and that none goes further."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import select
from sqlmodel import col

from models.auth.credentials import ApiKey
from models.auth.security_log import SecurityEvent
from models.errors import Forbidden, InvalidInput, NotFound, RequestError, Unauthenticated
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import DomainAdmin
from resolvers.auth import api_keys, authentication
from resolvers.auth.api_keys import ApiKeyChange, NewApiKey
from resolvers.context import Context, Viewer
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from tests.conftest import Client, make_key
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.sign_in_environment import (
    MASTER_SCOPES,
    SignInEnvironment,
    add_other_domain,
    make_domain_admin_context,
)
from tests.support.clients.http_requests import post_document

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


async def made(
    sign_in_environment: SignInEnvironment, ctx: Context, **facts: Any
) -> tuple[ApiKey, str, Viewer]:
    row, secret = await api_keys.create_api_key(ctx, NewApiKey("k", **facts))
    return row, secret, await sign_in_environment.authenticate(secret)


async def test_an_admins_key_for_domains_is_a_domain_admins(
    sign_in_environment: SignInEnvironment,
) -> None:
    boss = sign_in_environment.user_context("ada", Role.ADMIN)
    _, _, viewer = await made(
        sign_in_environment, boss, role=Role.ADMIN, domains=[sign_in_environment.domain_id]
    )
    assert (viewer.user_id, viewer.role) == (0, Role.DOMAIN_ADMIN)
    assert viewer.administered_domains == {sign_in_environment.domain_id}
    assert viewer.permissions == frozenset(AdminPermission)
    for facts in (
        {"user_id": sign_in_environment.users["ada"], "role": Role.ADMIN},
        {"role": Role.USER},
    ):
        with pytest.raises(InvalidInput):
            await made(sign_in_environment, boss, domains=[sign_in_environment.domain_id], **facts)
    with pytest.raises(NotFound):
        await made(sign_in_environment, boss, role=Role.ADMIN, domains=[7])


async def test_a_domain_admins_key_has_no_domain_more(
    sign_in_environment: SignInEnvironment,
) -> None:
    dora, other = (
        await make_domain_admin_context(sign_in_environment),
        await add_other_domain(sign_in_environment),
    )
    role = Role.DOMAIN_ADMIN
    for domains in ([other], [sign_in_environment.domain_id, other]):
        with pytest.raises(NotFound):
            await made(sign_in_environment, dora, role=role, domains=domains)
    _, secret, viewer = await made(
        sign_in_environment, dora, role=role, domains=[sign_in_environment.domain_id]
    )
    assert (viewer.user_id, viewer.administered_domains) == (
        0,
        frozenset({sign_in_environment.domain_id}),
    )
    assert viewer.permissions == {AdminPermission.LOGIN_AS}
    narrow = Context(sign_in_environment.world, viewer)
    with pytest.raises(InvalidInput):  # nobody's account, and so no key of its own without domains
        await made(sign_in_environment, narrow, role=role)
    with pytest.raises(RequestError):
        await made(
            sign_in_environment, narrow, role=role, user_id=sign_in_environment.users["dora"]
        )
    await sign_in_environment.change_user("dora", disabled=True)
    sign_in_environment.clock.tick(seconds=5)
    assert await sign_in_environment.is_refused(secret)


async def test_nobody_makes_a_key_of_a_neighbour_who_administers_more(
    sign_in_environment: SignInEnvironment,
) -> None:
    dora, other = (
        await make_domain_admin_context(sign_in_environment),
        await add_other_domain(sign_in_environment),
    )
    rita = await sign_in_environment.add_user(
        "rita", role=Role.DOMAIN_ADMIN, domain_id=sign_in_environment.domain_id
    )
    async with sign_in_environment.world.write_session() as session:
        session.add(DomainAdmin(user_id=rita, domain_id=other))
    for role in (Role.DOMAIN_ADMIN, Role.USER):
        with pytest.raises(Forbidden):
            await made(sign_in_environment, dora, role=role, user_id=rita)
    await sign_in_environment.change_user("ada", domain_id=sign_in_environment.domain_id)
    _, _, viewer = await made(sign_in_environment, dora, user_id=sign_in_environment.users["ada"])
    assert viewer.user_id == sign_in_environment.users["ada"]


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
async def test_a_key_makes_none_that_goes_further(
    sign_in_environment: SignInEnvironment, facts: dict[str, Any]
) -> None:
    await sign_in_environment.add_user("bob")
    row, _, viewer = await made(
        sign_in_environment,
        sign_in_environment.user_context("ada"),
        operations=["viewer", "apiKeyCreate", "apiKeyUpdate"],
        allowed_ips=["192.0.2.0/24"],
        expires_at=sign_in_environment.clock() + timedelta(days=1),
    )
    ctx = Context(sign_in_environment.world, viewer)
    if isinstance(facts.get("expires_at"), timedelta):
        facts = {"expires_at": sign_in_environment.clock() + facts["expires_at"]}
    if "user_id" in facts:
        facts = {"user_id": sign_in_environment.users["bob"]}
    with pytest.raises((Forbidden, NotFound)):
        await api_keys.create_api_key(ctx, NewApiKey("k", **facts))
    child, _ = await api_keys.create_api_key(ctx, NewApiKey("k"))
    assert child.operations == sorted(row.operations)
    assert (child.allowed_ips, child.expires_at) == (row.allowed_ips, row.expires_at)


async def test_a_narrow_scope_or_a_reader_makes_no_key_at_all(
    sign_in_environment: SignInEnvironment,
) -> None:
    for facts in ({"scopes": [Scope.MAIL]}, {"read_only": True}):
        _, _, viewer = await made(
            sign_in_environment, sign_in_environment.user_context("ada"), **facts
        )
        with pytest.raises(Forbidden):
            await api_keys.create_api_key(
                Context(sign_in_environment.world, viewer), NewApiKey("k")
            )


async def test_a_key_takes_nothing_off_that_it_is_bound_by(
    sign_in_environment: SignInEnvironment,
) -> None:
    row, secret, viewer = await made(
        sign_in_environment,
        sign_in_environment.user_context("ada"),
        allowed_ips=["192.0.2.0/24"],
        expires_at=sign_in_environment.clock() + timedelta(days=1),
    )
    ctx, later = (
        Context(sign_in_environment.world, viewer),
        sign_in_environment.clock() + timedelta(days=2),
    )
    for change in (
        ApiKeyChange(allowed_ips=[]),
        ApiKeyChange(allowed_ips=["0.0.0.0/0"]),
        ApiKeyChange(expires_at=later),
        ApiKeyChange(removes_expiry=True),
    ):
        with pytest.raises(Forbidden):
            await api_keys.update_api_keys(ctx, [row.id], change)
    narrower = ApiKeyChange("n", allowed_ips=["192.0.2.1/32"], expires_at=viewer.expires_at)
    (now,) = await api_keys.update_api_keys(ctx, [row.id], narrower)
    assert (now.name, now.allowed_ips) == ("n", ["192.0.2.1/32"])
    assert not await sign_in_environment.is_refused(secret)
    (now,) = await api_keys.update_api_keys(
        sign_in_environment.user_context("ada"), [row.id], ApiKeyChange(removes_expiry=True)
    )
    assert now.expires_at is None


async def test_nobody_changes_a_key_above_themselves(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.add_user("rex", role=Role.ROOT)
    rexs, _ = await api_keys.create_api_key(
        sign_in_environment.user_context("rex", Role.ROOT), NewApiKey("r")
    )
    roots, _ = await api_keys.create_api_key(
        sign_in_environment.user_context("rex", Role.ROOT), NewApiKey("r", role=Role.ROOT)
    )
    mine, secret = await api_keys.create_api_key(
        sign_in_environment.user_context("ada"), NewApiKey("m")
    )
    off = ApiKeyChange(active=False)
    for ctx, key in (
        (sign_in_environment.user_context("ada", Role.ADMIN), rexs.id),
        (sign_in_environment.user_context("ada", Role.ADMIN), roots.id),
        (sign_in_environment.user_context("ada", scopes=frozenset({Scope.SETTINGS})), mine.id),
    ):
        with pytest.raises(Forbidden):
            await api_keys.update_api_keys(ctx, [mine.id, key], off)
    await sign_in_environment.add_user("bob")
    with pytest.raises(NotFound):
        await api_keys.update_api_keys(sign_in_environment.user_context("bob"), [mine.id], off)
    assert not await sign_in_environment.is_refused(secret)
    await api_keys.update_api_keys(sign_in_environment.user_context("ada"), [mine.id], off)
    assert await sign_in_environment.is_refused(secret)
    await api_keys.update_api_keys(
        sign_in_environment.user_context("ada"), [mine.id], ApiKeyChange(active=True)
    )
    assert not await sign_in_environment.is_refused(secret)


async def test_a_key_is_good_from_its_networks_alone(
    sign_in_environment: SignInEnvironment,
) -> None:
    row, secret, _ = await made(
        sign_in_environment,
        sign_in_environment.user_context("ada"),
        allowed_ips=["192.0.2.0/24", "2001:db8::/64"],
    )
    headers = {"x-api-key": secret}
    for ip in ("192.0.2.255", "2001:db8::7", "::ffff:192.0.2.1"):
        assert (
            await authentication.authenticate_request(sign_in_environment.world, headers, ip=ip)
        ).api_key_id == row.id
    for elsewhere in ("192.0.3.0", "2001:db8:0:1::", None, "x"):
        with pytest.raises(Unauthenticated):
            await authentication.authenticate_request(
                sign_in_environment.world, headers, ip=elsewhere
            )
    await authentication.wait_for_background_tasks(sign_in_environment.world)
    table = core_table(SecurityEvent)
    asked = select(table).where(col(SecurityEvent.result) == "fail")
    rows = await sign_in_environment.world.database.read(asked)
    assert {(event.action, event.user_id) for event in rows} == {
        ("api key", sign_in_environment.users["ada"])
    }
    (noted,) = await api_keys.load_api_keys_by_id(sign_in_environment.user_context("ada"), [row.id])
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
    answer = await post_document(http, "{ viewer { role } __typename }", secret)
    assert answer["data"]["viewer"] == {"role": "USER"}
    for refused in (
        "{ user { id } }",
        "{ viewer { role } ... on Query { user { id } } }",
        "{ ...F } fragment F on Query { __schema { queryType { name } } }",
        "mutation { tokenRevoke(input: {}) { revoked } }",
    ):
        (error,) = (await post_document(http, refused, secret))["errors"]
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
    world: Environment, http: httpx.AsyncClient, root: Client, ada: Client
) -> None:
    dora = await make_domain_admin(world, http, "dora", list(AdminPermission))
    given = {"name": "k", "role": "ADMIN", "domains": [{"name": "example.org"}]}
    done = (await root(CREATE, input=given))["apiKeyCreate"]
    assert done["errors"] == []
    assert done["apiKey"]["domains"] == [{"name": "example.org"}]
    asked = "{ viewer { role user { id } administers { name } apiKey { name } adminPermissions } }"
    viewer = (await post_document(http, asked, done["secret"]))["data"]["viewer"]
    assert viewer == {
        "role": "DOMAIN_ADMIN",
        "user": None,
        "administers": [{"name": "example.org"}],
        "apiKey": {"name": "k"},
        "adminPermissions": sorted(AdminPermission),
    }
    for wider in ({"role": "ADMIN"}, {"role": "DOMAIN_ADMIN"}, {"role": "ADMIN", **given}):
        (error,) = (
            await post_document(http, CREATE, done["secret"], input={**wider, "name": "w"})
        )["data"]["apiKeyCreate"]["errors"]
        assert error["code"] in {"FORBIDDEN", "VALIDATION"}
    wide = {"name": "w", "role": "DOMAIN_ADMIN", "domains": [{"name": "example.org"}]}
    (error,) = (await ada(CREATE, input=wide))["apiKeyCreate"]["errors"]
    assert error["code"] == "NOT_FOUND"
    assert (await dora(CREATE, input=wide))["apiKeyCreate"]["errors"] == []


async def test_a_key_that_lost_its_ground_says_less(sign_in_environment: SignInEnvironment) -> None:
    """What the maker may no longer do, the key may not."""
    dora = await make_domain_admin_context(sign_in_environment)
    _, secret, viewer = await made(sign_in_environment, dora, role=Role.DOMAIN_ADMIN)
    assert viewer.role is Role.DOMAIN_ADMIN
    await sign_in_environment.change_user("dora", role=Role.USER)
    sign_in_environment.clock.tick(seconds=5)
    now = await sign_in_environment.authenticate(secret)
    assert (now.role, now.administered_domains) == (Role.USER, frozenset())
    assert await authentication.has_credential_ended(sign_in_environment.world, viewer)
    assert replace(now, permissions=frozenset()).scopes == MASTER_SCOPES


async def test_the_key_of_nobody_is_in_the_administrative_log(
    root: Client, world: Environment
) -> None:
    from models.admin.admin_log import AdminLogEntry

    await make_key(world, "before")
    await root(CREATE, input={"name": "k", "role": "ADMIN"})
    rows = await world.database.read(select(core_table(AdminLogEntry)))
    assert [(row.mutation, row.target_kind) for row in rows] == [("apiKeyCreate", "ApiKey")]


@pytest.mark.usefixtures("ada")
async def test_an_admin_makes_a_domain_admins_key(
    over: Client, root: Client, world: Environment, http: httpx.AsyncClient
) -> None:
    far = NewUser(username="far", address="far@far.example", password_disabled=True)
    await creation_create.create_user(
        Context(world, Viewer(role=Role.ROOT, scopes=MASTER_SCOPES)), far
    )
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
