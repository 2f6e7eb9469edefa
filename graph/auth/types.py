"""GraphQL types, queries and mutations of sign-in, access tokens and API keys."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import strawberry
from strawberry.scalars import JSON

import graph.users.types
from graph.auth.app_passwords import AppPassword
from graph.domains.types import Domain
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Info, field, query
from graph.types.input_conditions import RestrictionsInput
from graph.types.mutations import AtomicExclusion, mutation
from graph.types.object_references import ObjectRef, ids_from_refs
from graph.types.object_views import DerivedField
from graph.types.references import (
    DomainRef,
    UserRef,
    UserSelection,
    load_domain_ids,
    load_named_user_id,
    load_user_or_viewer,
    user_selector_from_selection,
)
from graph.types.row_mapping import NodeView, global_id_field, link, selected_columns
from graph.types.scalars import CIDR, Duration, IPAddress
from models.auth.security_log import AuthProtocol
from models.errors import ErrorCollector, InvalidInput, require_found
from models.store.keyset_pages import Cursor
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from models.validation_constraints import ValidationConstraint
from resolvers.auth import (
    access_tokens,
    api_keys,
    app_passwords,
    authentication,
    credential_cache_flush,
    impersonation,
)
from resolvers.auth.api_keys import ApiKeyChange, NewApiKey
from resolvers.auth.authentication import AuthenticatedUser
from resolvers.auth.second_factors.second_factor_check import SecondFactorProof, TwoFactorMethod
from resolvers.auth.sign_in import SignInRequest
from resolvers.domains import loaders as domain_loaders
from resolvers.users import loaders as users

if TYPE_CHECKING:
    from graph.users.types import User

SECRET_METADATA = {"secret": True}  # not stored with the idempotency key
NOT_ATOMIC = AtomicExclusion("a sign-in", forbids_idempotency_key=True)  # failures are counted


def _user_from_row(row: Any) -> "User | None":
    return graph.users.types.User.from_row_or_none(row)


@strawberry.type(description="A credential that a sign-in with a password returns.")
class AccessToken(NodeView):
    created_at: datetime = attribute_field("Time of the sign-in.")
    expires_at: datetime = attribute_field(
        "Time when the access token expires unless it is used before. Each use "
        "extends it, up to the age in the setting tokens.maxAge. A token of "
        "userImpersonate is not extended."
    )
    last_used_at: datetime = attribute_field("Time of the last use, recorded at most once an hour.")
    ip: IPAddress | None = attribute_field("IP address of the client at the sign-in.")
    protocol: AuthProtocol | None = attribute_field(
        "Protocol that the client named at the sign-in."
    )
    scope: Scope = attribute_field("Scope of the access token.")
    current: bool = attribute_field("True for the access token of this request.")

    load_batch = staticmethod(access_tokens.load_own_tokens_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("AccessToken")}


@strawberry.type(description="A long-lived credential for programs.")
class ApiKey(NodeView):
    name: str = attribute_field("Purpose of the API key.")
    role: Role = attribute_field(
        "Role of the API key. Its rights never exceed the present role of its user."
    )
    scopes: list[Scope] = attribute_field("Scopes of the API key. Empty: all scopes of its role.")
    read_only: bool = attribute_field("True if the API key can't run mutations.")
    maker: str | None = attribute_field(
        "Name of the administrator or API key that created the API key for its "
        "user. Null: the user did, or the key has no user."
    )
    created_at: datetime = attribute_field("Time when the API key was created.")
    expires_at: datetime | None = attribute_field("Time when the API key expires. Null: never.")
    last_used_at: datetime | None = attribute_field(
        "Time of the last use, recorded at most once an hour. Null: never used."
    )
    last_used_ip: IPAddress | None = attribute_field(
        "IP address of the client at the last recorded use. Null: never used."
    )
    active: bool = attribute_field(
        "True if the API key is accepted. An inactive key can be activated again."
    )
    allowed_ips: list[CIDR] = attribute_field(
        "Networks from which the API key is accepted. Empty: all networks."
    )
    operations: list[str] = attribute_field(
        "Root fields that the API key can use. Empty: all root fields."
    )
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        users.load_visible_users_by_id,
        _user_from_row,
        description="User that the API key belongs to. Null: the key belongs to no user.",
    )

    load_batch = staticmethod(api_keys.load_visible_api_keys_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("ApiKey"),
        "scopes": DerivedField(("scopes",), lambda scopes: [Scope(scope) for scope in scopes]),
    }

    @field(
        "Domains that the API key administers as a DOMAIN_ADMIN, without acting for "
        "a user. Empty: the key acts for its user, or with all rights of its role.",
        "domains",
    )
    async def domains(self, info: Info) -> list[Domain]:
        rows = await info.context.load_many(
            domain_loaders.load_visible_domains_by_id, self.row.domains
        )
        return [Domain.from_row(row) for row in rows if row is not None]


@strawberry.type(description="The caller of this request and the rights of the credential.")
class Viewer:
    role: Role = attribute_field("Role of the credential.")
    scopes: list[Scope] = attribute_field("Scopes of the credential.")
    read_only: bool = attribute_field("True if the credential is a read-only API key.")
    admin_permissions: list[AdminPermission] = attribute_field(
        "Permissions that a DOMAIN_ADMIN has in the administered domains."
    )
    permissions: list[UserPermission] = attribute_field(
        "Permissions that a USER has for the user's account."
    )

    @field("The signed-in user. Null: an API key without a user, or no sign-in.")
    async def user(
        self, info: Info
    ) -> Annotated["User", strawberry.lazy("graph.users.types")] | None:
        key = info.context.viewer.user_id
        return (
            _user_from_row(await info.context.load(users.load_visible_users_by_id, key))
            if key
            else None
        )

    @field("User that an administrator acts as by userImpersonate. Null: no impersonation.")
    async def impersonating(
        self, info: Info
    ) -> Annotated["User", strawberry.lazy("graph.users.types")] | None:
        viewer = info.context.viewer
        row = (
            await info.context.load(users.load_visible_users_by_id, viewer.user_id)
            if viewer.is_acting
            else None
        )
        return _user_from_row(row)

    @field("Domains that a DOMAIN_ADMIN administers, in alphabetical order.")
    async def administers(self, info: Info) -> list[Domain]:
        keys = sorted(info.context.viewer.administered_domains)
        rows = await info.context.load_many(domain_loaders.load_visible_domains_by_id, keys)
        return sorted((Domain.from_row(row) for row in rows if row), key=lambda domain: domain.name)

    @field("API key of this request. Null: another credential or none.")
    async def api_key(self, info: Info) -> ApiKey | None:
        key = info.context.viewer.api_key_id
        row = await info.context.load(api_keys.load_visible_api_keys_by_id, key) if key else None
        return ApiKey.from_row_or_none(row)

    @field("Application password of this request. Null: another credential or none.")
    async def app_password(self, info: Info) -> AppPassword | None:
        key = info.context.viewer.app_password_id
        row = (
            await info.context.load(app_passwords.load_visible_app_passwords_by_id, key)
            if key
            else None
        )
        return AppPassword.from_row_or_none(row)

    @field("Access token of this request. Null: another credential or none.")
    async def token(self, info: Info) -> AccessToken | None:
        key = info.context.viewer.token_id
        row = await info.context.load(access_tokens.load_own_tokens_by_id, key) if key else None
        return AccessToken.from_row_or_none(row)


@strawberry.input(description="Input of authenticate.")
class AuthenticateInput(Options):
    username: str = attribute_field("User name, or an address of the user.")
    password: str = attribute_field(
        "Password as the user typed it. The scope FULL takes the user's main or "
        "temporary password; other scopes take an application password, or the main "
        "password if no second factor is on."
    )
    protocol: AuthProtocol = attribute_field(
        "Protocol of the client, for the security log.", default=AuthProtocol.API
    )
    scope: Scope = attribute_field(
        "Scope to sign in for, such as FULL, IMAP, POP3 or SMTP.", default=Scope.FULL
    )
    token: bool = attribute_field(
        "Returns an access token. Allowed with the scope FULL.", default=False
    )
    totp: str | None = attribute_field(
        "Proof of the second factor in the same request: a TOTP code or a recovery code.",
        default=strawberry.UNSET,
    )
    webauthn: JSON | None = attribute_field(
        "Proof of the second factor in the same request: the response of a security "
        "key to a challenge, as JSON.",
        default=strawberry.UNSET,
    )
    token_ttl: Duration | None = attribute_field(
        "Time without use after which the access token expires: 1 minute up to the "
        "setting tokens.maxAge, by default 180 days. Default: the setting "
        "tokens.idleTimeout, by default 14 days.",
        default=strawberry.UNSET,
    )


@strawberry.type(description="Payload of authenticate and userImpersonate.")
class AuthenticatePayload(MutationPayload):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = attribute_field(
        "The signed-in or impersonated user.", default=None
    )
    scope: Scope | None = attribute_field("Scope of the sign-in.", default=None)
    required_two_factor_methods: list[TwoFactorMethod] = attribute_field(
        "Second factors of which one must still be proved, by totpVerify or "
        "webauthnVerify. Until then the access token works for these mutations "
        "alone, for 10 minutes. Empty: the sign-in is complete.",
        default_factory=list,
    )
    password_change_required: bool = attribute_field(
        "True if the user should set a new password.", default=False
    )
    token: str | None = attribute_field(
        "The access token, which is returned once. Null: none was requested.",
        default=None,
        metadata=SECRET_METADATA,
    )
    expires_at: datetime | None = attribute_field(
        "Time when the access token expires unless it is used before. Null: no "
        "access token was requested.",
        default=None,
    )

    @classmethod
    def from_sign_in(cls, sign_in: AuthenticatedUser) -> "AuthenticatePayload":
        """Return the payload of a successful sign-in."""
        return cls(
            user=graph.users.types.User.from_row(sign_in.user),
            scope=sign_in.scope,
            required_two_factor_methods=sign_in.required_two_factor_methods,
            password_change_required=sign_in.password_change_required,
            token=sign_in.token,
            expires_at=sign_in.expires_at,
        )


@strawberry.input(one_of=True, description="Names one access token.")
class AccessTokenRef(ObjectRef):
    pass


@strawberry.input(description="Input of tokenRevoke.")
class TokenRevokeInput(Options):
    access_tokens: list[AccessTokenRef] | None = attribute_field(
        "The access tokens to revoke. Default: the access token of this request.",
        default=strawberry.UNSET,
    )
    all: bool = attribute_field("Revokes every access token of the signed-in user.", default=False)


@strawberry.type(description="Payload of tokenRevoke.")
class TokenRevokePayload(MutationPayload):
    revoked_count: int = attribute_field("Number of revoked access tokens.", default=0)


@strawberry.input(description="Input of apiKeyCreate.")
class ApiKeyCreateInput(Options, RestrictionsInput):
    restriction_fields = frozenset({"scopes", "domains", "operations", "allowed_ips"})
    name: str = attribute_field("Purpose of the API key: 1 to 128 printable characters.")
    role: Role = attribute_field(
        "Role of the API key, at most the caller's role and the role of the key's user.",
        default=Role.USER,
    )
    scopes: list[Scope] | None = attribute_field(
        "Scopes of the API key. Default: all scopes of its role.", default=strawberry.UNSET
    )
    read_only: bool = attribute_field("Refuses mutations with the API key.", default=False)
    user: UserRef | None = attribute_field(
        "User that the API key belongs to. Default: the signed-in user; no user if "
        "the key has the role ADMIN or above.",
        default=strawberry.UNSET,
    )
    expires_at: datetime | None = attribute_field(
        "Time when the API key expires. Default: never; a key for another user "
        "expires after 4 hours.",
        default=strawberry.UNSET,
    )
    domains: list[DomainRef] | None = attribute_field(
        "Restricts the API key to these domains, which it administers as a "
        "DOMAIN_ADMIN: at most 100. The key then acts for no user.",
        default=strawberry.UNSET,
    )
    operations: list[str] | None = attribute_field(
        "Names of the root fields that the API key can use: at most 100. Default: all root fields.",
        default=strawberry.UNSET,
    )
    allowed_ips: list[CIDR] | None = attribute_field(
        "Networks from which the API key is accepted: at most 100. Default: all networks.",
        default=strawberry.UNSET,
    )


@strawberry.type(description="Payload of apiKeyCreate.")
class ApiKeyCreatePayload(MutationPayload):
    api_key: ApiKey | None = attribute_field("The new API key, without its secret.", default=None)
    secret: str | None = attribute_field(
        "Secret of the API key, which is returned once.", default=None, metadata=SECRET_METADATA
    )


@strawberry.input(one_of=True, description="Names one API key.")
class ApiKeyRef(ObjectRef):
    pass


@strawberry.input(description="New values of API keys. An absent field leaves the value.")
class ApiKeyPatch(RestrictionsInput):
    restriction_fields = frozenset({"allowed_ips"})
    name: str | None = attribute_field(
        "Purpose of the API keys: 1 to 128 printable characters.", default=strawberry.UNSET
    )
    active: bool | None = attribute_field(
        "Accepts the API keys, or refuses them until they are activated again.",
        default=strawberry.UNSET,
    )
    allowed_ips: list[CIDR] | None = attribute_field(
        "Networks from which the API keys are accepted: at most 100. Null: all networks.",
        default=strawberry.UNSET,
    )
    expires_at: datetime | None = attribute_field(
        "Time when the API keys expire. Null: never.", default=strawberry.UNSET
    )


@strawberry.input(description="Input of apiKeyUpdate.")
class ApiKeyUpdateInput(Options):
    api_keys: list[ApiKeyRef] = attribute_field("The API keys to change.")
    set: ApiKeyPatch = attribute_field("Values to set on each of the API keys.")


@strawberry.input(description="Input of apiKeyDelete.")
class ApiKeyDeleteInput(Options):
    api_keys: list[ApiKeyRef] = attribute_field("The API keys to delete.")


@strawberry.type(description="Payload of apiKeyUpdate.")
class ApiKeysPayload(MutationPayload):
    api_keys: list[ApiKey] = attribute_field(
        "The changed API keys, in the order of the references.", default_factory=list
    )


@strawberry.input(description="Input of userImpersonate.")
class UserImpersonateInput(Options):
    user: UserRef = attribute_field("User to act as.")
    ttl: Duration | None = attribute_field(
        "Lifetime of the access token, from 1 minute to 4 hours; uses don't extend "
        "it. Default: 30 minutes.",
        default=strawberry.UNSET,
    )


@strawberry.input(description="Input of authCacheFlush.")
class AuthCacheFlushInput(Options):
    users: UserSelection | None = attribute_field(
        "Users whose cached credentials are dropped. Default: all users.", default=strawberry.UNSET
    )


@strawberry.type(description="Payload of authCacheFlush.")
class AuthCacheFlushPayload(MutationPayload):
    flushed_count: int = attribute_field(
        "Number of credentials that this process removed from its cache.", default=0
    )


@strawberry.type
class AuthQuery:
    @query(
        "Returns the caller of this request. Without a credential the role is PUBLIC.",
        role=Role.PUBLIC,
    )
    async def viewer(self, info: Info) -> Viewer:
        caller = info.context.viewer
        return Viewer(
            role=caller.role,
            scopes=sorted(caller.scopes),
            read_only=caller.read_only,
            admin_permissions=sorted(
                permission
                for permission in caller.permissions
                if isinstance(permission, AdminPermission)
            ),
            permissions=sorted(
                permission
                for permission in caller.permissions
                if isinstance(permission, UserPermission)
            ),
        )

    @query(
        "Returns the API keys of the signed-in user and the key of this request. An "
        "ADMIN sees all keys. Newest first.",
        scope=Scope.READ,
    )
    async def api_keys(
        self,
        info: Info,
        first: int | None = strawberry.UNSET,
        after: str | None = strawberry.UNSET,
        last: int | None = strawberry.UNSET,
        before: str | None = strawberry.UNSET,
    ) -> Connection[ApiKey]:
        ctx, requested_page = (
            info.context,
            page_request(api_keys.CURSOR_KIND, first, after, last, before),
        )
        return await connection_of_page(
            info,
            ApiKey,
            await api_keys.load_api_keys(ctx, requested_page, selected_columns(info, ApiKey)),
            lambda row: Cursor(api_keys.CURSOR_KIND, row.created_at, row.id),
            lambda: api_keys.count_api_keys(ctx),
        )


@strawberry.type
class AuthMutation:
    @mutation(
        "Signs in with a password. Failed attempts are throttled for each user and network.",
        role=Role.PUBLIC,
        atomic_exclusion=NOT_ATOMIC,
    )
    async def authenticate(self, info: Info, input: AuthenticateInput) -> AuthenticatePayload:
        scope = Scope(input.scope)  # strawberry passes the plain text if the schema is sorted
        protocol = AuthProtocol(input.protocol)
        proof = _proof_from_input(input)
        attempt = SignInRequest(scope, protocol, input.token, input.token_ttl or None, proof)
        sign_in = await authentication.authenticate(
            info.context, input.username, input.password, attempt
        )
        return AuthenticatePayload.from_sign_in(sign_in)

    @mutation(
        "Revokes access tokens of the caller. Without a credential no token is revoked.",
        role=Role.PUBLIC,
    )
    async def token_revoke(self, info: Info, input: TokenRevokeInput) -> TokenRevokePayload:
        refs = input.access_tokens
        keys = ids_from_refs(info, refs, "accessTokens") if isinstance(refs, list) else None
        revoked_count = await access_tokens.revoke_own_access_tokens(
            info.context, keys, all=input.all
        )
        return TokenRevokePayload(revoked_count=revoked_count)

    @mutation(
        "Creates an API key. Its role can't exceed the caller's. The secret is returned once.",
        scope=Scope.FULL,
    )
    async def api_key_create(self, info: Info, input: ApiKeyCreateInput) -> ApiKeyCreatePayload:
        problems = ErrorCollector()
        owner, domain_ids, operations = None, list[int](), list[str]()
        with problems.collecting():
            owner = await load_named_user_id(info, input.user)
        with problems.collecting():
            domain_ids = await load_domain_ids(info, input.domains or ())
        with problems.collecting():
            operations = _validated_root_field_names(info, input.operations or ())
        new = NewApiKey(
            name=input.name,
            role=Role(input.role),
            scopes=frozenset(map(Scope, input.scopes or ())),
            read_only=input.read_only,
            user_id=owner,
            expires_at=input.expires_at or None,
            domains=domain_ids,
            operations=operations,
            allowed_ips=input.allowed_ips or (),
        )
        row, secret = await api_keys.create_api_key(info.context, new, problems)
        return ApiKeyCreatePayload(api_key=ApiKey.from_row(row), secret=secret)

    @mutation(
        "Updates API keys, all or none. A caller can't change a key with a higher role.",
        scope=Scope.FULL,
    )
    async def api_key_update(self, info: Info, input: ApiKeyUpdateInput) -> ApiKeysPayload:
        keys, patch = ids_from_refs(info, input.api_keys, "apiKeys"), input.set
        networks = patch.allowed_ips
        change = ApiKeyChange(
            patch.name or (None if patch.name is None or patch.name is strawberry.UNSET else ""),
            None if patch.active is strawberry.UNSET else patch.active,
            None if networks is strawberry.UNSET else networks or (),
            patch.expires_at or None,
            removes_expiry=patch.expires_at is None,
        )
        rows = await api_keys.update_api_keys(info.context, keys, change)
        return ApiKeysPayload(api_keys=[ApiKey.from_row(row) for row in rows])

    @mutation(
        "Deletes API keys, all or none. A caller can't delete a key with a higher role.",
        scope=Scope.FULL,
    )
    async def api_key_delete(self, info: Info, input: ApiKeyDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.api_keys, "apiKeys")
        await api_keys.delete_api_keys(info.context, keys)
        return DeletePayload.of_keys("ApiKey", keys)

    @mutation(
        "Creates an access token to act on another user's mail and settings, "
        "without access to credentials. The user's security log names the "
        "administrator or API key.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.FULL,
        admin_permission=AdminPermission.IMPERSONATE,
    )
    async def user_impersonate(
        self, info: Info, input: UserImpersonateInput
    ) -> AuthenticatePayload:
        user = require_found(await load_user_or_viewer(info, input.user), path=["user"])
        sign_in = await impersonation.create_impersonation_token(
            info.context, user.id, input.ttl or None
        )
        return AuthenticatePayload.from_sign_in(sign_in)

    @mutation(
        "Drops credentials from the caches of all processes, so that the database is read again.",
        role=Role.ADMIN,
        scope=Scope.FULL,
    )
    async def auth_cache_flush(
        self, info: Info, input: AuthCacheFlushInput
    ) -> AuthCacheFlushPayload:
        users = user_selector_from_selection(input.users) if input.users else None
        return AuthCacheFlushPayload(
            flushed_count=await credential_cache_flush.flush_cached_credentials(info.context, users)
        )


def _proof_from_input(input: AuthenticateInput) -> SecondFactorProof:
    """Return the second-factor proof of a sign-in.

    Raises Invalid if the WebAuthn response is not a JSON object.
    """
    if input.webauthn and not isinstance(input.webauthn, dict):
        text = "The response of a security key must be a JSON object"
        raise InvalidInput(text, constraint=ValidationConstraint.OBJECT, path=["webauthn"])
    return SecondFactorProof(
        input.totp or None, cast("Mapping[str, Any] | None", input.webauthn or None)
    )


def _validated_root_field_names(info: Info, operation_names: Sequence[str]) -> list[str]:
    """Return the names of operations. Raises Invalid if one is not a root field of the schema."""
    schema = info.schema._schema  # noqa: SLF001 - no other way in
    roots = (schema.query_type, schema.mutation_type, schema.subscription_type)
    known_names = {name for root in roots if root for name in root.fields}
    for index, name in enumerate(operation_names):
        if name not in known_names:
            text = "Must be the name of a field of Query, Mutation or Subscription"
            raise InvalidInput(
                text, constraint=ValidationConstraint.UNKNOWN, path=["operations"], index=index
            )
    return list(operation_names)
