"""GraphQL types, queries and mutations of sign-in, access tokens and API keys."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, cast

import strawberry
from strawberry.scalars import JSON

import graph.users.types
from graph.auth.app_passwords import AppPassword
from graph.domains.types import Domain
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, Options, leaf
from graph.types.fields import Info, field, query
from graph.types.input_conditions import Restrictions
from graph.types.mutations import Alone, mutation
from graph.types.object_views import Made
from graph.types.references import (
    DomainRef,
    UserRef,
    UserSelection,
    domains_of,
    keys_of,
    owner_named,
    user_of,
    users_named,
)
from graph.types.row_mapping import Shape, columns, identified, link
from graph.types.scalars import CIDR, Duration, IPAddress
from models.errors import Invalid, Problems, found
from models.store.keyset_pages import Cursor
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from resolvers.auth import (
    access_tokens,
    act_as,
    api_keys,
    app_passwords,
    authentication,
    credential_cache_flush,
)
from resolvers.auth.api_keys import KeyChange, NewKey
from resolvers.auth.authentication import Authenticated
from resolvers.auth.second_factors.second_factor_check import Proof, TwoFactorMethod
from resolvers.auth.sign_in import Attempt
from resolvers.domains import loaders as domain_loaders
from resolvers.users import loaders as users

if TYPE_CHECKING:
    from graph.users.types import User

SECRET = {"secret": True}  # not stored with the idempotency key
SIGN_IN = Alone("a sign-in", once=True)  # failures are counted


def _user(row: Any) -> "User | None":
    return graph.users.types.User.maybe(row)


@strawberry.type(description="Login of a program.")
class AccessToken(Shape):
    created_at: datetime = leaf("Signed in.")
    expires_at: datetime = leaf("Ends then, unless it is used before.")
    last_used_at: datetime = leaf("Last use, to the hour.")
    ip: IPAddress | None = leaf("Where it signed in from.")
    protocol: str | None = leaf("What it said it speaks.")
    scope: Scope = leaf("What it is good for.")
    current: bool = leaf("True for the token of this call.")

    batch = staticmethod(access_tokens.tokens_by_ids)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("AccessToken")}


@strawberry.type(description="Long-lived key.")
class ApiKey(Shape):
    name: str = leaf("What it is for.")
    role: Role = leaf("May do what this role may; never more than its user.")
    scopes: list[Scope] = leaf("What it is good for; empty = all of its role.")
    read_only: bool = leaf("Refused for any mutation.")
    maker: str | None = leaf(
        "Name of the administrator or API key that made it for the account. Null: the account."
    )
    created_at: datetime = leaf("Made.")
    expires_at: datetime | None = leaf("Ends then; null = never.")
    last_used_at: datetime | None = leaf("Last use, to the hour.")
    last_used_ip: IPAddress | None = leaf("Where from.")
    active: bool = leaf("False: refused, and can be switched on again.")
    allowed_ips: list[CIDR] = leaf("Networks it is good from; empty = all.")
    operations: list[str] = leaf("Root fields it is good for; empty = all.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        users.by_ids,
        _user,
        description="Whose it is; null for keys that belong to nobody.",
    )

    batch = staticmethod(api_keys.keys_by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("ApiKey"),
        "scopes": Made(("scopes",), lambda scopes: [Scope(scope) for scope in scopes]),
    }

    @field("Domains it acts for, in place of an account; empty = all of its role.", "domains")
    async def domains(self, info: Info) -> list[Domain]:
        rows = await info.context.load_all(domain_loaders.by_ids, self.row.domains)
        return [Domain.of(row) for row in rows if row is not None]


@strawberry.type(description="The caller, derived from the credential alone.")
class Viewer:
    role: Role = leaf("Effective role.")
    scopes: list[Scope] = leaf("Effective scopes.")
    read_only: bool = leaf("True for read-only API keys.")
    admin_permissions: list[AdminPermission] = leaf("Delegated to a DOMAIN_ADMIN.")
    permissions: list[UserPermission] = leaf("Given to a USER.")

    @field("The user, null for API keys that belong to nobody.")
    async def user(
        self, info: Info
    ) -> Annotated["User", strawberry.lazy("graph.users.types")] | None:
        key = info.context.viewer.user_id
        return _user(await info.context.load(users.by_ids, key)) if key else None

    @field("Set when an administrator acts as a user: whom.")
    async def acting_for(
        self, info: Info
    ) -> Annotated["User", strawberry.lazy("graph.users.types")] | None:
        viewer = info.context.viewer
        row = await info.context.load(users.by_ids, viewer.user_id) if viewer.acting else None
        return _user(row)

    @field("Domains a DOMAIN_ADMIN is in charge of.")
    async def administers(self, info: Info) -> list[Domain]:
        keys = sorted(info.context.viewer.administers)
        rows = await info.context.load_all(domain_loaders.by_ids, keys)
        return sorted((Domain.of(row) for row in rows if row), key=lambda domain: domain.name)

    @field("The key used, if any.")
    async def api_key(self, info: Info) -> ApiKey | None:
        key = info.context.viewer.api_key_id
        row = await info.context.load(api_keys.keys_by_ids, key) if key else None
        return ApiKey.maybe(row)

    @field("The application password used, if any.")
    async def app_password(self, info: Info) -> AppPassword | None:
        key = info.context.viewer.app_password_id
        row = await info.context.load(app_passwords.by_ids, key) if key else None
        return AppPassword.maybe(row)

    @field("The token used, if any.")
    async def token(self, info: Info) -> AccessToken | None:
        key = info.context.viewer.token_id
        row = await info.context.load(access_tokens.tokens_by_ids, key) if key else None
        return AccessToken.maybe(row)


@strawberry.input(description="Input of authenticate.")
class AuthenticateInput(Options):
    username: str = leaf("Or an address.")
    password: str = leaf("As typed.")
    protocol: str = leaf("For the log.", default="API")
    scope: Scope = leaf("MASTER, IMAP, POP3, SMTP, …", default=Scope.MASTER)
    token: bool = leaf("Answer with an access token; only for MASTER.", default=False)
    totp: str | None = leaf(
        "Second factor at once: a code, or a recovery code.", default=strawberry.UNSET
    )
    webauthn: JSON | None = leaf(
        "Second factor at once: what a key has signed.", default=strawberry.UNSET
    )
    token_ttl: Duration | None = leaf(
        "Unused that long, the token ends, PT1M to P180D; by default the setting auth.tokenTtl.",
        default=strawberry.UNSET,
    )


@strawberry.type(description="Answer of authenticate.")
class AuthenticatePayload(MutationPayload):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = leaf(
        "Who has signed in.", default=None
    )
    scope: Scope | None = leaf("What the password was good for.", default=None)
    require2fa: list[TwoFactorMethod] = leaf(
        "Not finished until one of these is proved: till then the token is good for that alone, "
        "and for ten minutes.",
        default_factory=list,
    )
    require_password_change: bool = leaf("A new password should be set.", default=False)
    token: str | None = leaf("Shown once.", default=None, metadata=SECRET)
    expires_at: datetime | None = leaf(
        "When the token ends, unless it is used before.", default=None
    )

    @classmethod
    def made(cls, done: Authenticated) -> "AuthenticatePayload":
        """Return the payload of a successful sign-in."""
        return cls(
            user=graph.users.types.User.of(done.user),
            scope=done.scope,
            require2fa=done.require2fa,
            require_password_change=done.require_password_change,
            token=done.token,
            expires_at=done.expires_at,
        )


@strawberry.input(description="Input of tokenRevoke.")
class TokenRevokeInput(Options):
    ids: list[strawberry.ID] | None = leaf(
        "Default: the token of this call.", default=strawberry.UNSET
    )
    all: bool = leaf("Every token of the viewer.", default=False)


@strawberry.type(description="Answer of tokenRevoke.")
class TokenRevokePayload(MutationPayload):
    revoked: int = leaf("How many have ended.", default=0)


@strawberry.input(description="Input of apiKeyCreate.")
class ApiKeyCreateInput(Options, Restrictions):
    restrictions = frozenset({"scopes", "domains", "operations", "allowed_ips"})
    name: str = leaf("What it is for.")
    role: Role = leaf("Up to one's own.", default=Role.USER)
    scopes: list[Scope] | None = leaf("Default: all of the role.", default=strawberry.UNSET)
    read_only: bool = leaf("Refuse any mutation.", default=False)
    user: UserRef | None = leaf(
        "Whose. Default: the viewer's; nobody's, where the role is ADMIN or above.",
        default=strawberry.UNSET,
    )
    expires_at: datetime | None = leaf("Default: never.", default=strawberry.UNSET)
    domains: list[DomainRef] | None = leaf(
        "Act for these alone, as a DOMAIN_ADMIN.", default=strawberry.UNSET
    )
    operations: list[str] | None = leaf(
        "Root fields it is good for; default: all.", default=strawberry.UNSET
    )
    allowed_ips: list[CIDR] | None = leaf(
        "Networks it is good from; default: all.", default=strawberry.UNSET
    )


@strawberry.type(description="Answer of apiKeyCreate.")
class ApiKeyCreatePayload(MutationPayload):
    api_key: ApiKey | None = leaf("The key.", default=None)
    secret: str | None = leaf("Shown once.", default=None, metadata=SECRET)


@strawberry.input(description="Input of apiKeyUpdate; what is absent stays.")
class ApiKeyUpdateInput(IdsInput, Restrictions):
    restrictions = frozenset({"allowed_ips"})
    name: str | None = leaf("What they are for.", default=strawberry.UNSET)
    active: bool | None = leaf("Off or on.", default=strawberry.UNSET)
    allowed_ips: list[CIDR] | None = leaf("Networks; null = all.", default=strawberry.UNSET)
    expires_at: datetime | None = leaf("null = never.", default=strawberry.UNSET)


@strawberry.type(description="Answer of apiKeyUpdate.")
class ApiKeysPayload(MutationPayload):
    api_keys: list[ApiKey] = leaf("The keys.", default_factory=list)


@strawberry.input(description="Input of actAs.")
class ActAsInput(Options):
    user: UserRef = leaf("As whom.")
    ttl: Duration | None = leaf("PT1M to PT4H, by default PT30M.", default=strawberry.UNSET)


@strawberry.input(description="Input of authCacheFlush.")
class AuthCacheFlushInput(Options):
    users: UserSelection | None = leaf("Whose; default: everybody's.", default=strawberry.UNSET)


@strawberry.type(description="Answer of authCacheFlush.")
class AuthCacheFlushPayload(MutationPayload):
    entries: int = leaf("How many credentials were forgotten, in this process.", default=0)


@strawberry.type
class AuthQuery:
    @query("The caller.", role=Role.PUBLIC)
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

    @query("One's own keys, newest first; all for ADMIN.", scope=Scope.READ)
    async def api_keys(
        self,
        info: Info,
        first: int | None = strawberry.UNSET,
        after: str | None = strawberry.UNSET,
        last: int | None = strawberry.UNSET,
        before: str | None = strawberry.UNSET,
    ) -> Connection[ApiKey]:
        ctx, requested_page = info.context, page_asked(api_keys.NEWEST, first, after, last, before)
        return await connected(
            info,
            ApiKey,
            await api_keys.keys(ctx, requested_page, columns(info, ApiKey)),
            lambda row: Cursor(api_keys.NEWEST, row.created_at, row.id),
            lambda: api_keys.count_keys(ctx),
        )


@strawberry.type
class AuthMutation:
    @mutation("Sign in. Throttled by user and network.", role=Role.PUBLIC, alone=SIGN_IN)
    async def authenticate(self, info: Info, input: AuthenticateInput) -> AuthenticatePayload:
        scope = Scope(input.scope)  # strawberry passes the plain text if the schema is sorted
        proof = _proof(input)
        attempt = Attempt(scope, input.protocol, input.token, input.token_ttl or None, proof)
        sign_in = await authentication.authenticate(
            info.context, input.username, input.password, attempt
        )
        return AuthenticatePayload.made(sign_in)

    @mutation("End tokens. Without a credential nothing happens.", role=Role.PUBLIC)
    async def token_revoke(self, info: Info, input: TokenRevokeInput) -> TokenRevokePayload:
        keys = keys_of(info, "AccessToken", input.ids) if isinstance(input.ids, list) else None
        return TokenRevokePayload(
            revoked=await access_tokens.revoke(info.context, keys, all=input.all)
        )

    @mutation("Role up to one's own.", scope=Scope.MASTER)
    async def api_key_create(self, info: Info, input: ApiKeyCreateInput) -> ApiKeyCreatePayload:
        problems = Problems()
        owner, domain_ids, operations = None, list[int](), list[str]()
        with problems.caught():
            owner = await owner_named(info, input.user)
        with problems.caught():
            domain_ids = await domains_of(info, input.domains or ())
        with problems.caught():
            operations = _operations(info, input.operations or ())
        new = NewKey(
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
        row, secret = await api_keys.create_key(info.context, new, problems)
        return ApiKeyCreatePayload(api_key=ApiKey.of(row), secret=secret)

    @mutation("All or none; nobody changes a key above themselves.", scope=Scope.MASTER)
    async def api_key_update(self, info: Info, input: ApiKeyUpdateInput) -> ApiKeysPayload:
        ctx, keys = info.context, keys_of(info, "ApiKey", input.ids)
        networks = input.allowed_ips
        change = KeyChange(
            input.name or (None if input.name is None or input.name is strawberry.UNSET else ""),
            None if input.active is strawberry.UNSET else input.active,
            None if networks is strawberry.UNSET else networks or (),
            input.expires_at or None,
            endless=input.expires_at is None,
        )
        rows = await api_keys.update_keys(ctx, keys, change)
        return ApiKeysPayload(api_keys=[ApiKey.of(row) for row in rows])

    @mutation("All or none; nobody deletes a key above themselves.", scope=Scope.MASTER)
    async def api_key_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        keys = keys_of(info, "ApiKey", input.ids)
        await api_keys.delete_keys(info.context, keys)
        return DeletePayload(deleted_ids=input.ids)

    @mutation(
        "Token for another user's mail and settings, written to that user's log.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.MASTER,
        admin_permission=AdminPermission.LOGIN_AS,
    )
    async def act_as(self, info: Info, input: ActAsInput) -> AuthenticatePayload:
        user = found(await user_of(info, input.user), path=["user"])
        sign_in = await act_as.act_as(info.context, user.id, input.ttl or None)
        return AuthenticatePayload.made(sign_in)

    @mutation(
        "Ask the store again about remembered credentials.", role=Role.ADMIN, scope=Scope.MASTER
    )
    async def auth_cache_flush(
        self, info: Info, input: AuthCacheFlushInput
    ) -> AuthCacheFlushPayload:
        users = users_named(input.users) if input.users else None
        return AuthCacheFlushPayload(
            entries=await credential_cache_flush.flush(info.context, users)
        )


def _proof(input: AuthenticateInput) -> Proof:
    """Return the second-factor proof of a sign-in.

    Raises Invalid if the WebAuthn response is not a JSON object.
    """
    if input.webauthn and not isinstance(input.webauthn, dict):
        text = "what a key has signed is an object"
        raise Invalid(text, constraint="object", path=["webauthn"])
    return Proof(input.totp or None, cast("Mapping[str, Any] | None", input.webauthn or None))


def _operations(info: Info, names: Sequence[str]) -> list[str]:
    """Return the names of operations. Raises Invalid if one is not a root field of the schema."""
    schema = info.schema._schema  # noqa: SLF001 - no other way in
    roots = (schema.query_type, schema.mutation_type, schema.subscription_type)
    known_names = {name for root in roots if root for name in root.fields}
    for index, name in enumerate(names):
        if name not in known_names:
            text = "no field of Query, Mutation or Subscription"
            raise Invalid(text, constraint="unknown", path=["operations"], index=index)
    return list(names)
