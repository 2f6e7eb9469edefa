"""API keys that are restricted to domains, operations or networks."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import httpx
import pytest
from sqlalchemy import delete, select
from sqlmodel import col

from models.auth.credentials import ApiKey
from models.auth.security_log import SecurityEvent
from models.errors import Forbidden, InvalidInput, NotFound, RequestError, Unauthenticated
from models.runtime.environment import Environment
from models.store.columns import core_table
from models.users.roles import AdminPermission, Role, Scope
from models.users.tables import DomainAdmin
from resolvers.auth import authentication
from resolvers.auth.api_keys import loaders as api_key_loaders
from resolvers.auth.api_keys import mutations as api_key_mutations
from resolvers.auth.api_keys.validation import ApiKeyChange, NewApiKey
from resolvers.context import Context
from resolvers.users.creation import create as creation_create
from resolvers.users.creation.create import NewUser
from resolvers.viewer import Viewer
from tests.conftest import GraphQLClient, make_api_key
from tests.support.accounts.domain_admins import make_domain_admin
from tests.support.accounts.sign_in_environment import (
    FULL_SCOPES,
    SignInEnvironment,
    add_other_domain,
    make_domain_admin_context,
)
from tests.support.clients.http_requests import post_document

API_KEY_CREATE = """
mutation ($input: ApiKeyCreateInput!) {
  apiKeyCreate(input: $input) {
    secret errors { code path }
    apiKey { id operations allowedIps active domains { name } lastUsedIp }
  }
}
"""
API_KEY_UPDATE = """
mutation ($input: ApiKeyUpdateInput!) {
  apiKeyUpdate(input: $input) {
    apiKeys { name active allowedIps expiresAt } errors { code path }
  }
}
"""


async def create_key_and_viewer(
    sign_in_environment: SignInEnvironment, ctx: Context, **fields: Any
) -> tuple[ApiKey, str, Viewer]:
    row, secret = await api_key_mutations.create_api_key(ctx, NewApiKey("k", **fields))
    return row, secret, await sign_in_environment.authenticate(secret)


async def test_admin_key_limited_to_domains_is_domain_admin(
    sign_in_environment: SignInEnvironment,
) -> None:
    admin_context = sign_in_environment.user_context("ada", Role.ADMIN)
    _, _, viewer = await create_key_and_viewer(
        sign_in_environment, admin_context, role=Role.ADMIN, domains=[sign_in_environment.domain_id]
    )
    assert (viewer.user_id, viewer.role) == (0, Role.DOMAIN_ADMIN)
    assert viewer.administered_domains == {sign_in_environment.domain_id}
    assert viewer.permissions == frozenset(AdminPermission)
    for fields in (
        {"user_id": sign_in_environment.users["ada"], "role": Role.ADMIN},
        {"role": Role.USER},
    ):
        with pytest.raises(InvalidInput):
            await create_key_and_viewer(
                sign_in_environment,
                admin_context,
                domains=[sign_in_environment.domain_id],
                **fields,
            )
    with pytest.raises(NotFound):
        await create_key_and_viewer(
            sign_in_environment, admin_context, role=Role.ADMIN, domains=[7]
        )


async def test_domain_admin_key_covers_only_own_domains(
    sign_in_environment: SignInEnvironment,
) -> None:
    admin_context = await make_domain_admin_context(sign_in_environment)
    other_domain_id = await add_other_domain(sign_in_environment)
    role = Role.DOMAIN_ADMIN
    for domains in ([other_domain_id], [sign_in_environment.domain_id, other_domain_id]):
        with pytest.raises(NotFound):
            await create_key_and_viewer(
                sign_in_environment, admin_context, role=role, domains=domains
            )
    _, secret, viewer = await create_key_and_viewer(
        sign_in_environment, admin_context, role=role, domains=[sign_in_environment.domain_id]
    )
    assert (viewer.user_id, viewer.administered_domains) == (
        0,
        frozenset({sign_in_environment.domain_id}),
    )
    assert viewer.permissions == {AdminPermission.IMPERSONATE}
    key_context = Context(sign_in_environment.environment, viewer)
    with pytest.raises(InvalidInput):  # a key without a user can't create a key without domains
        await create_key_and_viewer(sign_in_environment, key_context, role=role)
    with pytest.raises(RequestError):
        await create_key_and_viewer(
            sign_in_environment, key_context, role=role, user_id=sign_in_environment.users["dora"]
        )
    await sign_in_environment.change_user("dora", active=False)
    sign_in_environment.clock.tick(seconds=5)
    assert await sign_in_environment.is_refused(secret)


@pytest.mark.parametrize(
    ("role", "has_domain"),
    [(Role.USER, False), (Role.DOMAIN_ADMIN, False), (Role.DOMAIN_ADMIN, True)],
)
async def test_domain_key_is_refused_while_its_user_administers_none_of_its_domains(
    sign_in_environment: SignInEnvironment, role: Role, has_domain: bool
) -> None:
    """It never acts as its user."""
    admin_context = await make_domain_admin_context(sign_in_environment)
    domain_id = sign_in_environment.domain_id
    _, secret, viewer = await create_key_and_viewer(
        sign_in_environment, admin_context, role=Role.DOMAIN_ADMIN, domains=[domain_id]
    )
    dora_id = sign_in_environment.users["dora"]
    is_of_dora = col(DomainAdmin.user_id) == dora_id
    async with sign_in_environment.environment.write_session() as session:
        await session.exec(delete(DomainAdmin).where(is_of_dora))
    if has_domain:
        other_domain_id = await add_other_domain(sign_in_environment)
        async with sign_in_environment.environment.write_session() as session:
            session.add(DomainAdmin(user_id=dora_id, domain_id=other_domain_id))
    await sign_in_environment.change_user("dora", role=role)
    sign_in_environment.clock.tick(seconds=5)
    assert await sign_in_environment.is_refused(secret)
    await sign_in_environment.change_user("dora", role=Role.DOMAIN_ADMIN)
    async with sign_in_environment.environment.write_session() as session:
        session.add(DomainAdmin(user_id=dora_id, domain_id=domain_id))
    sign_in_environment.clock.tick(seconds=5)
    assert await sign_in_environment.authenticate(secret) == viewer


async def test_domain_admin_creates_no_key_of_admin_of_more_domains(
    sign_in_environment: SignInEnvironment,
) -> None:
    admin_context = await make_domain_admin_context(sign_in_environment)
    other_domain_id = await add_other_domain(sign_in_environment)
    rita_id = await sign_in_environment.add_user(
        "rita", role=Role.DOMAIN_ADMIN, domain_id=sign_in_environment.domain_id
    )
    async with sign_in_environment.environment.write_session() as session:
        session.add(DomainAdmin(user_id=rita_id, domain_id=other_domain_id))
    for role in (Role.DOMAIN_ADMIN, Role.USER):
        with pytest.raises(Forbidden):
            await create_key_and_viewer(
                sign_in_environment, admin_context, role=role, user_id=rita_id
            )
    await sign_in_environment.change_user("ada", domain_id=sign_in_environment.domain_id)
    _, _, viewer = await create_key_and_viewer(
        sign_in_environment, admin_context, user_id=sign_in_environment.users["ada"]
    )
    assert viewer.user_id == sign_in_environment.users["ada"]


@pytest.mark.parametrize(
    "fields",
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
async def test_key_creates_no_key_with_more_rights(
    sign_in_environment: SignInEnvironment, fields: dict[str, Any]
) -> None:
    await sign_in_environment.add_user("bob")
    row, _, viewer = await create_key_and_viewer(
        sign_in_environment,
        sign_in_environment.user_context("ada"),
        operations=["viewer", "apiKeyCreate", "apiKeyUpdate"],
        allowed_ips=["192.0.2.0/24"],
        expires_at=sign_in_environment.clock() + timedelta(days=1),
    )
    ctx = Context(sign_in_environment.environment, viewer)
    if isinstance(fields.get("expires_at"), timedelta):
        fields = {"expires_at": sign_in_environment.clock() + fields["expires_at"]}
    if "user_id" in fields:
        fields = {"user_id": sign_in_environment.users["bob"]}
    with pytest.raises((Forbidden, NotFound)):
        await api_key_mutations.create_api_key(ctx, NewApiKey("k", **fields))
    child, _ = await api_key_mutations.create_api_key(ctx, NewApiKey("k"))
    assert child.operations == sorted(row.operations)
    assert (child.allowed_ips, child.expires_at) == (row.allowed_ips, row.expires_at)


async def test_scoped_or_read_only_key_creates_no_key(
    sign_in_environment: SignInEnvironment,
) -> None:
    for fields in ({"scopes": [Scope.MAIL]}, {"read_only": True}):
        _, _, viewer = await create_key_and_viewer(
            sign_in_environment, sign_in_environment.user_context("ada"), **fields
        )
        with pytest.raises(Forbidden):
            await api_key_mutations.create_api_key(
                Context(sign_in_environment.environment, viewer), NewApiKey("k")
            )


async def test_key_does_not_loosen_its_own_restrictions(
    sign_in_environment: SignInEnvironment,
) -> None:
    row, secret, viewer = await create_key_and_viewer(
        sign_in_environment,
        sign_in_environment.user_context("ada"),
        allowed_ips=["192.0.2.0/24"],
        expires_at=sign_in_environment.clock() + timedelta(days=1),
    )
    ctx = Context(sign_in_environment.environment, viewer)
    later = sign_in_environment.clock() + timedelta(days=2)
    for change in (
        ApiKeyChange(allowed_ips=[]),
        ApiKeyChange(allowed_ips=["0.0.0.0/0"]),
        ApiKeyChange(expires_at=later),
        ApiKeyChange(removes_expiry=True),
    ):
        with pytest.raises(Forbidden):
            await api_key_mutations.update_api_keys(ctx, [row.id], change)
    narrower_change = ApiKeyChange("n", allowed_ips=["192.0.2.1/32"], expires_at=viewer.expires_at)
    (updated_row,) = await api_key_mutations.update_api_keys(ctx, [row.id], narrower_change)
    assert (updated_row.name, updated_row.allowed_ips) == ("n", ["192.0.2.1/32"])
    assert not await sign_in_environment.is_refused(secret)
    (updated_row,) = await api_key_mutations.update_api_keys(
        sign_in_environment.user_context("ada"), [row.id], ApiKeyChange(removes_expiry=True)
    )
    assert updated_row.expires_at is None


async def test_user_does_not_change_key_with_more_rights(
    sign_in_environment: SignInEnvironment,
) -> None:
    await sign_in_environment.add_user("rex", role=Role.ROOT)
    rex_key, _ = await api_key_mutations.create_api_key(
        sign_in_environment.user_context("rex", Role.ROOT), NewApiKey("r")
    )
    root_key, _ = await api_key_mutations.create_api_key(
        sign_in_environment.user_context("rex", Role.ROOT), NewApiKey("r", role=Role.ROOT)
    )
    own_key, secret = await api_key_mutations.create_api_key(
        sign_in_environment.user_context("ada"), NewApiKey("m")
    )
    deactivation = ApiKeyChange(active=False)
    for ctx, api_key in (
        (sign_in_environment.user_context("ada", Role.ADMIN), rex_key.id),
        (sign_in_environment.user_context("ada", Role.ADMIN), root_key.id),
        (sign_in_environment.user_context("ada", scopes=frozenset({Scope.SETTINGS})), own_key.id),
    ):
        with pytest.raises(Forbidden):
            await api_key_mutations.update_api_keys(ctx, [own_key.id, api_key], deactivation)
    await sign_in_environment.add_user("bob")
    with pytest.raises(NotFound):
        await api_key_mutations.update_api_keys(
            sign_in_environment.user_context("bob"), [own_key.id], deactivation
        )
    assert not await sign_in_environment.is_refused(secret)
    await api_key_mutations.update_api_keys(
        sign_in_environment.user_context("ada"), [own_key.id], deactivation
    )
    assert await sign_in_environment.is_refused(secret)
    await api_key_mutations.update_api_keys(
        sign_in_environment.user_context("ada"), [own_key.id], ApiKeyChange(active=True)
    )
    assert not await sign_in_environment.is_refused(secret)


async def test_key_is_valid_only_from_its_networks(
    sign_in_environment: SignInEnvironment,
) -> None:
    row, secret, _ = await create_key_and_viewer(
        sign_in_environment,
        sign_in_environment.user_context("ada"),
        allowed_ips=["192.0.2.0/24", "2001:db8::/64"],
    )
    headers = {"x-api-key": secret}
    for ip in ("192.0.2.255", "2001:db8::7", "::ffff:192.0.2.1"):
        assert (
            await authentication.authenticate_request(
                sign_in_environment.environment, headers, ip=ip
            )
        ).api_key_id == row.id
    for refused_ip in ("192.0.3.0", "2001:db8:0:1::", None, "x"):
        with pytest.raises(Unauthenticated):
            await authentication.authenticate_request(
                sign_in_environment.environment, headers, ip=refused_ip
            )
    await authentication.wait_for_background_tasks(sign_in_environment.environment)
    table = core_table(SecurityEvent)
    query = select(table).where(col(SecurityEvent.result) == "FAILURE")
    rows = await sign_in_environment.environment.database.read(query)
    assert {(event.action, event.user_id) for event in rows} == {
        ("API_KEY_REFUSED", sign_in_environment.users["ada"])
    }
    (used_row,) = await api_key_loaders.load_visible_api_keys_by_id(
        sign_in_environment.user_context("ada"), [row.id]
    )
    assert used_row
    # of the first use, since it is updated once an hour
    assert used_row.last_used_ip == "192.0.2.1"


@pytest.mark.parametrize(
    ("arguments", "path"),
    [
        ({"operations": ["users", "nothing"]}, ["operations", "1"]),
        ({"operations": ["x" * 10_000]}, ["operations", "0"]),
        ({"operations": ["viewer"] * 101}, ["operations"]),
        ({"domains": [{"name": "nowhere.example"}]}, ["domains", "0"]),
        ({"allowedIps": ["192.0.2.0/24"] * 101}, ["allowedIps"]),
        ({"name": "x" * 10_000}, ["name"]),
        ({"name": "a\nb"}, ["name"]),
    ],
)
async def test_invalid_api_key_input_names_its_path(
    ada: GraphQLClient, arguments: dict[str, Any], path: list[str]
) -> None:
    payload = (await ada(API_KEY_CREATE, input={"name": "k", **arguments}))["apiKeyCreate"]
    assert [error["path"] for error in payload["errors"]] == [path]


async def test_key_limited_to_operations_runs_no_others(
    ada: GraphQLClient, http: httpx.AsyncClient
) -> None:
    arguments = {"name": "k", "operations": ["viewer", "mailbox"], "allowedIps": ["127.0.0.1"]}
    payload = (await ada(API_KEY_CREATE, input=arguments))["apiKeyCreate"]
    assert payload["apiKey"]["operations"] == ["mailbox", "viewer"]
    assert payload["apiKey"]["allowedIps"] == ["127.0.0.1/32"]
    secret = payload["secret"]
    response = await post_document(http, "{ viewer { role } __typename }", secret)
    assert response["data"]["viewer"] == {"role": "USER"}
    for document in (
        "{ user { id } }",
        "{ viewer { role } ... on Query { user { id } } }",
        "{ ...F } fragment F on Query { __schema { queryType { name } } }",
        "mutation { accessTokenRevoke(input: {}) { revokedCount } }",
    ):
        (error,) = (await post_document(http, document, secret))["errors"]
        assert error["extensions"]["code"] == "FORBIDDEN"
    headers = {"Authorization": f"Bearer {secret}"}
    assert (await http.post("/rest/uploads", content=b"x", headers=headers)).status_code == 403
    spoofed_headers = {**headers, "X-Client-IP": "127.0.0.1", "X-Forwarded-For": "127.0.0.1"}
    update_response = await ada(
        API_KEY_UPDATE,
        input={"apiKeys": [{"id": payload["apiKey"]["id"]}], "set": {"allowedIps": ["10.0.0.0/8"]}},
    )
    assert update_response["apiKeyUpdate"]["apiKeys"][0]["allowedIps"] == ["10.0.0.0/8"]
    body = {"query": "{ viewer { role } }"}
    assert (await http.post("/graphql", json=body, headers=spoofed_headers)).status_code == 401


async def test_invalid_api_key_update_is_refused(ada: GraphQLClient, bob: GraphQLClient) -> None:
    key_id = (await ada(API_KEY_CREATE, input={"name": "k"}))["apiKeyCreate"]["apiKey"]["id"]
    for client, arguments, code in (
        (ada, {}, "VALIDATION"),
        (ada, {"name": ""}, "VALIDATION"),
        (ada, {"expiresAt": "2029-01-01T00:00:00Z"}, "VALIDATION"),
        (bob, {"active": False}, "NOT_FOUND"),
    ):
        payload = (
            await client(API_KEY_UPDATE, input={"apiKeys": [{"id": key_id}], "set": arguments})
        )["apiKeyUpdate"]
        assert [error["code"] for error in payload["errors"]] == [code], arguments


async def test_key_limited_to_domains_creates_no_wider_key(
    environment: Environment, http: httpx.AsyncClient, root: GraphQLClient, ada: GraphQLClient
) -> None:
    domain_admin = await make_domain_admin(environment, http, "dora", list(AdminPermission))
    arguments = {"name": "k", "role": "ADMIN", "domains": [{"name": "example.org"}]}
    payload = (await root(API_KEY_CREATE, input=arguments))["apiKeyCreate"]
    assert payload["errors"] == []
    assert payload["apiKey"]["domains"] == [{"name": "example.org"}]
    query = """{ viewer { role user { id } administers { nodes { name } }
      apiKey { name } adminPermissions } }"""
    viewer = (await post_document(http, query, payload["secret"]))["data"]["viewer"]
    assert viewer == {
        "role": "DOMAIN_ADMIN",
        "user": None,
        "administers": {"nodes": [{"name": "example.org"}]},
        "apiKey": {"name": "k"},
        "adminPermissions": sorted(AdminPermission),
    }
    for wider_input in (
        {"role": "ADMIN"},
        {"role": "DOMAIN_ADMIN"},
        {"role": "ADMIN", **arguments},
    ):
        (error,) = (
            await post_document(
                http, API_KEY_CREATE, payload["secret"], input={**wider_input, "name": "w"}
            )
        )["data"]["apiKeyCreate"]["errors"]
        assert error["code"] in {"FORBIDDEN", "VALIDATION"}
    wide_input = {"name": "w", "role": "DOMAIN_ADMIN", "domains": [{"name": "example.org"}]}
    (error,) = (await ada(API_KEY_CREATE, input=wide_input))["apiKeyCreate"]["errors"]
    assert error["code"] == "NOT_FOUND"
    assert (await domain_admin(API_KEY_CREATE, input=wide_input))["apiKeyCreate"]["errors"] == []


async def test_key_loses_rights_with_its_demoted_maker(
    sign_in_environment: SignInEnvironment,
) -> None:
    admin_context = await make_domain_admin_context(sign_in_environment)
    _, secret, viewer = await create_key_and_viewer(
        sign_in_environment, admin_context, role=Role.DOMAIN_ADMIN
    )
    assert viewer.role is Role.DOMAIN_ADMIN
    await sign_in_environment.change_user("dora", role=Role.USER)
    sign_in_environment.clock.tick(seconds=5)
    current_viewer = await sign_in_environment.authenticate(secret)
    assert (current_viewer.role, current_viewer.administered_domains) == (Role.USER, frozenset())
    assert await authentication.record_use_and_return_has_ended_or_changed(
        sign_in_environment.environment, viewer
    )
    assert replace(current_viewer, permissions=frozenset()).scopes == FULL_SCOPES


async def test_creation_of_platform_key_is_in_audit_log(
    root: GraphQLClient, environment: Environment
) -> None:
    from models.admin.audit_log import AuditLogEntry

    await make_api_key(environment, "before")
    await root(API_KEY_CREATE, input={"name": "k", "role": "ADMIN"})
    rows = await environment.database.read(select(core_table(AuditLogEntry)))
    assert [(row.mutation, row.target_kind) for row in rows] == [("apiKeyCreate", "ApiKey")]


@pytest.mark.usefixtures("ada")
async def test_admin_creates_key_for_domain_without_own_rights(
    admin_client: GraphQLClient,
    root: GraphQLClient,
    environment: Environment,
    http: httpx.AsyncClient,
) -> None:
    new_user = NewUser(username="far", address="far@far.example", password_disabled=True)
    await creation_create.create_user(
        Context(environment, Viewer(role=Role.ROOT, scopes=FULL_SCOPES)), new_user
    )
    users_query = "{ users(first: 10) { nodes { username } } }"
    arguments = {"name": "k", "role": "DOMAIN_ADMIN", "domains": [{"name": "far.example"}]}
    for client in (admin_client, root):
        payload = (await client(API_KEY_CREATE, input=arguments))["apiKeyCreate"]
        assert payload["errors"] == []
        assert payload["apiKey"]["domains"] == [{"name": "far.example"}]
        key_client = GraphQLClient(http, environment, root.user, payload["secret"])
        assert (await key_client(users_query))["users"]["nodes"] == [{"username": "far"}]
    unknown_domain_input = {**arguments, "domains": [{"name": "nowhere.example"}]}
    (error,) = (await admin_client(API_KEY_CREATE, input=unknown_domain_input))["apiKeyCreate"][
        "errors"
    ]
    assert (error["code"], error["path"]) == ("NOT_FOUND", ["domains", "0"])
    domain_admin = await make_domain_admin(environment, http, "chief")
    (error,) = (await domain_admin(API_KEY_CREATE, input=arguments))["apiKeyCreate"]["errors"]
    assert error["code"] == "NOT_FOUND"
    user_key_input = {**arguments, "user": {"username": "ada"}}
    (error,) = (await admin_client(API_KEY_CREATE, input=user_key_input))["apiKeyCreate"]["errors"]
    assert error["code"] == "FORBIDDEN"
