"""API keys: create, list, update and delete."""

import logging
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from ipaddress import ip_network
from typing import Any

from sqlalchemy import ColumnElement, delete, func, select, true, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from models.auth.credentials import ApiKey
from models.auth.security_log import AuthEventAction
from models.domains.tables import Domain
from models.errors import ErrorCollector, Forbidden, InvalidInput, NotFound
from models.store.columns import ColumnRow, select_columns
from models.store.keyset_pages import Page, PageRequest
from models.users.roles import AdminPermission, Role, Scope, expand_scopes
from models.users.tables import DomainAdmin, User
from models.validation_constraints import ValidationConstraint
from resolvers import pagination
from resolvers.access import is_managed_user, is_visible_user
from resolvers.admin import audit_log
from resolvers.admin.audit_log import NewAuditLogEntry
from resolvers.auth import credential_makers, security_log
from resolvers.auth.credential_cache import drop_cached_credentials
from resolvers.auth.credential_makers import IMPERSONATION_SCOPES, acting_key_id, is_operator
from resolvers.auth.credential_status import API_KEY_PREFIX, generate_secret, secret_digest
from resolvers.auth.security_log import NewSecurityEvent
from resolvers.context import Context, GuardRule
from resolvers.pagination import PageScan, read_by_keys

log = logging.getLogger(__name__)

CURSOR_KIND = "apikeys-newest"
MAX_NAME_LENGTH = 128  # characters of a name
MAX_LIST_LENGTH = 100  # networks, domains or operations of a key
LOGGED_COLUMNS = (
    "name", "role", "scopes", "read_only", "active", "user_id", "domains", "operations",
    "allowed_ips", "expires_at", "maker",
)  # fmt: skip
VISIBLE_COLUMNS = frozenset(column.name for column in select_columns(ApiKey)) - {"digest"}


@dataclass(frozen=True, slots=True)
class NewApiKey:
    """An API key to create. Without scopes it has all rights of its role.

    Without a user it belongs to the caller or, with the role ADMIN or above, to no user. With
    `domains` it acts for these as a DOMAIN_ADMIN, and for no user.
    """

    name: str
    role: Role = Role.USER
    scopes: Collection[Scope] = ()
    read_only: bool = False
    user_id: int | None = None
    expires_at: datetime | None = None
    domains: Collection[int] = ()
    operations: Collection[str] = ()  # root fields; empty = all
    allowed_ips: Collection[str] = ()  # networks; empty = all


@dataclass(frozen=True, slots=True)
class ApiKeyChange:
    """Changes to API keys; None leaves a field unchanged."""

    name: str | None = None
    active: bool | None = None
    allowed_ips: Collection[str] | None = None
    expires_at: datetime | None = None
    removes_expiry: bool = False  # remove the end

    @property
    def column_values(self) -> dict[str, Any]:
        """The changed columns with their new values."""
        values = {
            "name": self.name and self.name.strip(),
            "active": self.active,
            "allowed_ips": None if self.allowed_ips is None else sorted(set(self.allowed_ips)),
            "expires_at": self.expires_at,
        }
        changed = {name: value for name, value in values.items() if value is not None}
        return changed | ({"expires_at": None} if self.removes_expiry else {})


async def create_api_key(
    ctx: Context, new_key: NewApiKey, problems: ErrorCollector | None = None
) -> tuple[ApiKey, str]:
    """Create an API key. Returns it with its secret, which is not stored.

    Raises all errors of its fields together with the `problems` found before. Role, scopes and
    domains can't exceed those of the caller or of the owner. If a key creates it, its operations,
    networks and end can't exceed those of that key. A DOMAIN_ADMIN needs IMPERSONATE to create a
    key for another user. Such a key has at most the scopes and the lifetime of a token of
    userImpersonate, names
    its maker, and ends when the maker loses the role or the permission.
    """
    environment, problems = ctx.environment, problems or ErrorCollector()
    new_key = _inherit_limits_of_calling_key(await _load_calling_key(ctx), new_key)
    _check_new_key_and_caller_role(ctx, new_key, problems)
    problems.raise_collected()
    owner_id = await _require_permitted_owner_id(ctx, new_key)
    if (
        is_for_another_user := bool(owner_id)
        and owner_id != ctx.viewer.user_id
        and not is_operator(ctx.viewer)
    ):
        new_key = _inherit_limits_of_impersonation(ctx, new_key)
    secret = generate_secret(environment, API_KEY_PREFIX)
    row = ApiKey(
        id=environment.new_id(),
        name=new_key.name.strip(),
        digest=secret_digest(secret),
        role=new_key.role,
        scopes=sorted(new_key.scopes),
        read_only=new_key.read_only,
        user_id=owner_id,
        domains=sorted(set(new_key.domains)),
        operations=sorted(set(new_key.operations)),
        allowed_ips=sorted(set(new_key.allowed_ips)),
        created_at=environment.now(),
        expires_at=new_key.expires_at,
    )
    async with ctx.write_session(*([owner_id] if owner_id else [])) as session:
        if is_for_another_user:
            row.made_by, row.made_by_key = ctx.viewer.user_id or None, acting_key_id(ctx.viewer)
            row.maker = (await security_log.load_actor_id_and_name(session, ctx.viewer))[1]
        session.add(row)
        await session.flush()
        await _write_admin_and_security_logs(ctx, session, "apiKeyCreate", [row])
    log.info("key made", extra={"key": row.id, "role": row.role, "by": ctx.viewer.principal})
    return row, secret


async def _load_calling_key(ctx: Context) -> ColumnRow | None:
    """Load the API key of the current request; None if it has no key."""
    statement = select(*select_columns(ApiKey, VISIBLE_COLUMNS)).where(
        col(ApiKey.id) == (ctx.viewer.api_key_id or 0)
    )
    return next(iter(await ctx.read(statement)), None)


def _inherit_limits_of_calling_key(calling_key: ColumnRow | None, new_key: NewApiKey) -> NewApiKey:
    """Limit the new key to the rights of the key that creates it.

    Raises Forbidden if the new key asks for more.
    """
    if calling_key is None:
        return new_key
    if calling_key.read_only:
        raise Forbidden("A read-only API key can't create API keys", requires="a key for writing")
    if not set(new_key.operations or calling_key.operations) <= set(
        calling_key.operations or new_key.operations
    ):
        raise _calling_key_exceeded_error("operations", "operations")
    _require_given_networks_within(calling_key, new_key.allowed_ips)
    _require_given_end_within(calling_key, new_key.expires_at)
    return replace(
        new_key,
        operations=new_key.operations or calling_key.operations,
        allowed_ips=new_key.allowed_ips or calling_key.allowed_ips,
        expires_at=new_key.expires_at or calling_key.expires_at,
    )


def _inherit_limits_of_impersonation(ctx: Context, new_key: NewApiKey) -> NewApiKey:
    """Limit a key for another user to the rights of a token of userImpersonate.

    Raises Forbidden or Invalid if the new key asks for more.
    """
    text = "An API key for another user can't exceed the {} of a token of userImpersonate"
    if new_key.role is not Role.USER:
        raise Forbidden(text.format("role"), requires=Role.USER, path=["role"])
    if not expand_scopes(frozenset(new_key.scopes)) <= expand_scopes(IMPERSONATION_SCOPES):
        raise Forbidden(text.format("scopes"), requires="the account itself", path=["scopes"])
    if ctx.viewer.user_id == 0 and acting_key_id(ctx.viewer) is None:
        raise Forbidden(
            "An API key for domains can't create credentials for a user",
            requires=Role.ADMIN,
            path=["user"],
        )
    max_expires_at = ctx.environment.now() + credential_makers.MAX_LIFETIME
    if new_key.expires_at and new_key.expires_at > max_expires_at:
        raise InvalidInput(
            text.format("lifetime"), constraint=ValidationConstraint.MAX, path=["expiresAt"]
        )
    scopes = new_key.scopes or sorted(IMPERSONATION_SCOPES)
    return replace(new_key, scopes=scopes, expires_at=new_key.expires_at or max_expires_at)


def _require_given_networks_within(calling_key: ColumnRow, given_networks: Collection[str]) -> None:
    """Raise Forbidden if a network is not inside the networks of the calling key."""
    allowed_networks = [ip_network(each) for each in calling_key.allowed_ips]
    for each in map(ip_network, given_networks):
        if allowed_networks and not any(_is_subnet(each, wide) for wide in allowed_networks):
            raise _calling_key_exceeded_error("networks", "allowedIps")


def _is_subnet(network: Any, enclosing_network: Any) -> bool:
    return network.version == enclosing_network.version and bool(
        network.subnet_of(enclosing_network)
    )


def _require_given_end_within(calling_key: ColumnRow, given_end: datetime | None) -> None:
    """Raise Forbidden if the end is later than that of the calling key."""
    if calling_key.expires_at and given_end and given_end > calling_key.expires_at:
        raise _calling_key_exceeded_error("end", "expiresAt")


def _calling_key_exceeded_error(limited_property: str, field: str) -> Forbidden:
    """Return the error for a key that would exceed the calling key."""
    text = (
        f"The {limited_property} of an API key can't exceed "
        f"the {limited_property} of the calling API key"
    )
    return Forbidden(text, requires=f"a key with these {limited_property}", path=[field])


def _check_new_key_and_caller_role(
    ctx: Context, new_key: NewApiKey, problems: ErrorCollector
) -> None:
    """Collect validation errors of a new key. Raises Forbidden if the caller lacks its role."""
    viewer = ctx.viewer
    change = ApiKeyChange(new_key.name, None, new_key.allowed_ips, new_key.expires_at)
    _check_name_networks_and_end(ctx, change, problems)
    with problems.collecting():
        if new_key.role is Role.PUBLIC:
            raise InvalidInput(
                "PUBLIC is not a role of API keys",
                constraint=ValidationConstraint.ROLE,
                path=["role"],
            )
    viewer.require(GuardRule(role=new_key.role, scope=Scope.FULL))
    with problems.collecting():
        if len(new_key.operations) > MAX_LIST_LENGTH:
            raise InvalidInput(
                f"at most {MAX_LIST_LENGTH}",
                constraint=ValidationConstraint.MAX,
                path=["operations"],
            )
    with problems.collecting():
        _check_domain_restriction(ctx, new_key)


def _check_domain_restriction(ctx: Context, new_key: NewApiKey) -> None:
    """Raise Invalid if the key can't be restricted to domains, or must be."""
    viewer = ctx.viewer
    if new_key.domains:
        if new_key.role is Role.USER:
            text = "An API key for domains needs the role DOMAIN_ADMIN or above"
            raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["domains"])
        if len(new_key.domains) > MAX_LIST_LENGTH:
            raise InvalidInput(
                f"at most {MAX_LIST_LENGTH}", constraint=ValidationConstraint.MAX, path=["domains"]
            )
        if new_key.role.includes(Role.ADMIN) and new_key.user_id is not None:
            text = "An API key with the role ADMIN that is restricted to domains can't have a user"
            raise InvalidInput(text, constraint=ValidationConstraint.EXCLUSIVE, path=["user"])
    elif viewer.role is Role.DOMAIN_ADMIN and not viewer.user_id and new_key.role is not Role.USER:
        raise InvalidInput(
            "The domains of the API key are required",
            constraint=ValidationConstraint.REQUIRED,
            path=["domains"],
        )


def _check_name_networks_and_end(
    ctx: Context, change: ApiKeyChange, problems: ErrorCollector
) -> None:
    """Collect validation errors of name, networks and end."""
    with problems.collecting():
        if change.name is not None and (
            not 0 < len(change.name.strip()) <= MAX_NAME_LENGTH or not change.name.isprintable()
        ):
            text = f"a name has 1 to {MAX_NAME_LENGTH} printable characters"
            raise InvalidInput(text, constraint=ValidationConstraint.PATTERN, path=["name"])
    with problems.collecting():
        if change.expires_at and change.expires_at <= ctx.environment.now():
            raise InvalidInput(
                "The time must be in the future",
                constraint=ValidationConstraint.MIN,
                path=["expiresAt"],
            )
    with problems.collecting():
        if len(change.allowed_ips or ()) > MAX_LIST_LENGTH:
            raise InvalidInput(
                f"at most {MAX_LIST_LENGTH}",
                constraint=ValidationConstraint.MAX,
                path=["allowedIps"],
            )
        for index, network in enumerate(change.allowed_ips or ()):
            try:
                ip_network(network)
            except ValueError:
                raise InvalidInput(
                    "Must be an IP address or network",
                    constraint=ValidationConstraint.CIDR,
                    path=["allowedIps"],
                    index=index,
                ) from None


async def _require_permitted_owner_id(ctx: Context, new_key: NewApiKey) -> int | None:
    """Return the user id that the new key will belong to; None for a key of the platform.

    Raises NotFound or Forbidden if the viewer can't create a key for that user.
    """
    viewer = ctx.viewer
    user_id = new_key.user_id
    if user_id is None:
        is_without_owner = (
            bool(new_key.domains) and not viewer.user_id and viewer.role.includes(Role.ADMIN)
        )
        if new_key.role.includes(Role.ADMIN) or is_without_owner:
            await _require_domains_of_caller_and_owner(ctx, new_key, None)
            return None
        user_id = viewer.user_id
    if not user_id:
        raise InvalidInput(
            "The user of the API key is required",
            constraint=ValidationConstraint.REQUIRED,
            path=["user"],
        )
    statement = select(col(User.id), col(User.role), is_managed_user(ctx).label("free"))
    for user in await ctx.read(statement.where(col(User.id) == user_id, is_visible_user(ctx))):
        if user.id != viewer.user_id:
            guard = GuardRule(role=Role.DOMAIN_ADMIN, admin_permission=AdminPermission.IMPERSONATE)
            viewer.require(guard)
            if not user.free:
                raise Forbidden(
                    f"this needs more than the role {viewer.role}",
                    requires=user.role,
                    path=["user"],
                )
        for role, limiting_role in ((user.role, viewer.role), (new_key.role, user.role)):
            if not limiting_role.includes(role):
                raise Forbidden(f"this needs the role {role}", requires=role, path=["user"])
        await _require_domains_of_caller_and_owner(ctx, new_key, user)
        return int(user.id)
    raise NotFound(str(user_id), path=["user"])


async def _require_domains_of_caller_and_owner(
    ctx: Context, new_key: NewApiKey, owner: ColumnRow | None
) -> None:
    """Raise NotFound if the owner does not administer one of the domains.

    An ADMIN administers all.
    """
    if not new_key.domains:
        return
    statement = select(col(Domain.id)).where(col(Domain.id).in_(new_key.domains))
    if ctx.viewer.role is Role.DOMAIN_ADMIN:
        statement = statement.where(col(Domain.id).in_(ctx.viewer.administered_domains))
    if owner and not owner.role.includes(Role.ADMIN):
        administered_domains = select(col(DomainAdmin.domain_id)).where(
            col(DomainAdmin.user_id) == owner.id
        )
        statement = statement.where(col(Domain.id).in_(administered_domains))
    found_ids = {row.id for row in await ctx.read(statement)}
    for index, domain_id in enumerate(new_key.domains):
        if domain_id not in found_ids:
            raise NotFound(str(domain_id), path=["domains"], index=index)


async def _write_admin_and_security_logs(
    ctx: Context,
    session: AsyncSession,
    mutation: str,
    keys: Sequence[ApiKey | ColumnRow],
    changed_values: Mapping[str, Any] | None = None,
) -> None:
    """Write a mutation to the owners' security logs, and to the admin log if the viewer is another.

    `changed_values` are the changed columns.
    """
    viewer, action = (
        ctx.viewer,
        AuthEventAction(f"API_KEY_{mutation.removeprefix('apiKey').upper()}"),
    )
    for key in keys:
        if key.user_id:
            detail = {"key": str(key.id), "name": key.name}
            event = NewSecurityEvent(action, key.user_id, target=str(key.id), detail=detail)
            await security_log.log_event(ctx, session, event)
    keys_of_others = [
        key for key in keys if viewer.is_acting or not key.user_id or key.user_id != viewer.user_id
    ]
    owner_ids = {key.user_id for key in keys_of_others if key.user_id}
    statement = select(col(User.id), col(User.domain_id)).where(col(User.id).in_(owner_ids))
    users = (await (await session.connection()).execute(statement)).all() if owner_ids else []
    domain_ids = {row.id: row.domain_id for row in users}
    values_by_id = {
        key.id: {name: getattr(key, name) for name in changed_values or LOGGED_COLUMNS}
        for key in keys_of_others
    }
    after = {"apiKeyUpdate": changed_values}.get(mutation)
    is_create = mutation == "apiKeyCreate"
    await audit_log.log_changes(
        ctx,
        session,
        *(
            NewAuditLogEntry(
                mutation,
                "ApiKey",
                key.id,
                domain_ids.get(key.user_id or 0),
                before=None if is_create else values_by_id[key.id],
                after=values_by_id[key.id] if is_create else after,
            )
            for key in keys_of_others
        ),
    )


def _is_visible_sql(ctx: Context) -> ColumnElement[bool]:
    """The WHERE clause for the keys that the viewer sees: the viewer's own, or all for an ADMIN."""
    viewer = ctx.viewer
    if viewer.role.includes(Role.ADMIN):
        return true()
    own = col(ApiKey.id) == (viewer.api_key_id or 0)
    return own | (col(ApiKey.user_id) == viewer.user_id) if viewer.user_id else own


async def load_api_keys(
    ctx: Context, page_request: PageRequest, columns: Iterable[str] = VISIBLE_COLUMNS
) -> Page[ColumnRow]:
    """Load a page of the keys that the viewer sees, newest first."""
    column_names = VISIBLE_COLUMNS.intersection(columns) | {"created_at", "id"}
    rows = select(*select_columns(ApiKey, column_names)).where(_is_visible_sql(ctx))
    sort_key = (col(ApiKey.created_at), col(ApiKey.id))
    return await pagination.read_page(
        ctx, PageScan(rows, page_request, sort_key, is_descending=True)
    )


async def count_api_keys(ctx: Context) -> int:
    """Count the keys that the viewer sees."""
    (row,) = await ctx.read(
        select(func.count(col(ApiKey.id)).label("many")).where(_is_visible_sql(ctx))
    )
    return int(row.many)


async def load_visible_api_keys_by_id(ctx: Context, ids: list[int]) -> list[ColumnRow | None]:
    """Load keys by id, in this order; None for a key that the viewer does not see."""
    statement = select(*select_columns(ApiKey, VISIBLE_COLUMNS)).where(_is_visible_sql(ctx))
    return await read_by_keys(ctx, statement, col(ApiKey.id), ids)


async def update_api_keys(ctx: Context, ids: list[int], change: ApiKeyChange) -> list[ColumnRow]:
    """Change these keys, all or none; return them.

    Raises Forbidden for a key with a higher role than the viewer's, and if a key would exceed the
    limits of the calling key. Raises NotFound for a key that the viewer does not see.
    """
    problems = ErrorCollector()
    _check_name_networks_and_end(ctx, change, problems)
    problems.raise_collected()
    changed_values = change.column_values
    if not changed_values:
        raise InvalidInput(
            "At least one field is required",
            constraint=ValidationConstraint.REQUIRED,
            path=["name"],
        )
    if calling_key := await _load_calling_key(ctx):
        if change.allowed_ips is not None:
            _require_given_networks_within(calling_key, change.allowed_ips or ["0.0.0.0/0"])
        if change.removes_expiry and calling_key.expires_at:
            raise _calling_key_exceeded_error("end", "expiresAt")
        _require_given_end_within(calling_key, change.expires_at)
    rows = await _require_changeable_keys(ctx, ids)
    for row in rows:
        max_expires_at = row.created_at + credential_makers.MAX_LIFETIME
        if row.maker and (
            change.removes_expiry or (change.expires_at and change.expires_at > max_expires_at)
        ):
            text = "An API key for another user expires at most 4 hours after its creation"
            raise InvalidInput(text, constraint=ValidationConstraint.MAX, path=["expiresAt"])
    owner_ids = {row.user_id or 0 for row in rows}
    async with ctx.write_session(*(owner for owner in owner_ids if owner)) as session:
        connection = await session.connection()
        statement = update(ApiKey).where(col(ApiKey.id).in_(ids)).values(**changed_values)
        await connection.execute(statement)
        await _write_admin_and_security_logs(ctx, session, "apiKeyUpdate", rows, changed_values)
    drop_cached_credentials(ctx.environment, *owner_ids)
    return [row for row in await load_visible_api_keys_by_id(ctx, ids) if row]


async def delete_api_keys(ctx: Context, ids: list[int]) -> None:
    """Delete these keys, all or none.

    Raises NotFound for a key that the viewer does not see, Forbidden for one with a higher role.
    """
    rows = await _require_changeable_keys(ctx, ids)
    owner_ids = {row.user_id or 0 for row in rows}
    async with ctx.write_session(*(owner for owner in owner_ids if owner)) as session:
        await session.exec(delete(ApiKey).where(col(ApiKey.id).in_(ids)))
        await _write_admin_and_security_logs(ctx, session, "apiKeyDelete", rows)
    drop_cached_credentials(ctx.environment, *owner_ids)


async def _require_changeable_keys(ctx: Context, ids: list[int]) -> list[ColumnRow]:
    """Load these keys, each once, for a change.

    Raises NotFound if the viewer does not see one, Forbidden if one has a higher role.
    """
    viewer = ctx.viewer
    viewer.require(GuardRule(scope=Scope.FULL))
    rows = await load_visible_api_keys_by_id(ctx, ids)
    for index, row in enumerate(rows):
        if row is None:
            raise NotFound(str(ids[index]), path=["ids"], index=index)
        viewer.require(GuardRule(role=row.role))
    keys_by_id = {row.id: row for row in rows if row}
    other_owner_ids = {row.user_id for row in keys_by_id.values() if row.user_id} - {viewer.user_id}
    if viewer.api_key_id:  # a key for domains sees itself, also if another user owns it
        other_owner_ids -= {
            row.user_id for key, row in keys_by_id.items() if key == viewer.api_key_id
        }
    statement = select(col(User.id)).where(col(User.id).in_(other_owner_ids), is_managed_user(ctx))
    if other_owner_ids and len(await ctx.read(statement)) < len(other_owner_ids):
        raise Forbidden(
            "The user of the API key has a higher role than the caller", requires=Role.ROOT
        )
    return list(keys_by_id.values())
