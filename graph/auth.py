"""Credentials, as the API shows them."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry

import graph.users
from graph.connections import Connection, connected, page_asked
from graph.errors import DeletePayload, IdsInput, MutationPayload, Options, leaf
from graph.fields import Info, field, query
from graph.mutations import alone, mutation
from graph.refs import UserRef, keys_of, user_of
from graph.rows import Shape, columns, identified, link
from graph.scalars import Duration, IPAddress
from graph.views import Made
from models.errors import found
from models.pages import Cursor
from models.roles import Role, Scope
from resolvers import apikeys, auth, users
from resolvers.apikeys import NewKey
from resolvers.auth import Attempt

if TYPE_CHECKING:
    from graph.users import User

SECRET = {"secret": True}  # never kept for an idempotency key


def _user(row: Any) -> "User | None":
    return graph.users.User.maybe(row)


@strawberry.type(description="Login of a program.")
class AccessToken(Shape):
    created_at: datetime = leaf("Signed in.")
    expires_at: datetime = leaf("Ends then, unless it is used before.")
    last_used_at: datetime = leaf("Last use, to the hour.")
    ip: IPAddress | None = leaf("Where it signed in from.")
    protocol: str | None = leaf("What it said it speaks.")
    scope: Scope = leaf("What it is good for.")
    current: bool = leaf("True for the token of this call.")

    batch = staticmethod(auth.tokens_by_ids)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("AccessToken")}


@strawberry.type(description="Long-lived key.")
class ApiKey(Shape):
    name: str = leaf("What it is for.")
    role: Role = leaf("May do what this role may; never more than its user.")
    scopes: list[Scope] = leaf("What it is good for; empty = all of its role.")
    read_only: bool = leaf("Refused for any mutation.")
    created_at: datetime = leaf("Made.")
    expires_at: datetime | None = leaf("Ends then; null = never.")
    last_used_at: datetime | None = leaf("Last use, to the hour.")
    user: Annotated["User", strawberry.lazy("graph.users")] | None = link(
        "user_id",
        users.by_ids,
        _user,
        description="Whose it is; null for keys that belong to nobody.",
    )

    batch = staticmethod(apikeys.keys_by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("ApiKey"),
        "scopes": Made(("scopes",), lambda scopes: [Scope(scope) for scope in scopes]),
    }


@strawberry.type(description="The caller, derived from the credential alone.")
class Viewer:
    role: Role = leaf("Effective role.")
    scopes: list[Scope] = leaf("Effective scopes.")
    read_only: bool = leaf("True for read-only API keys.")

    @field("The user, null for API keys that belong to nobody.")
    async def user(self, info: Info) -> Annotated["User", strawberry.lazy("graph.users")] | None:
        key = info.context.viewer.user_id
        return _user(await info.context.load(users.by_ids, key)) if key else None

    @field("The key used, if any.")
    async def api_key(self, info: Info) -> ApiKey | None:
        key = info.context.viewer.api_key_id
        row = await info.context.load(apikeys.keys_by_ids, key) if key else None
        return ApiKey.maybe(row)

    @field("The token used, if any.")
    async def token(self, info: Info) -> AccessToken | None:
        key = info.context.viewer.token_id
        row = await info.context.load(auth.tokens_by_ids, key) if key else None
        return AccessToken.maybe(row)


@strawberry.input(description="Input of authenticate.")
class AuthenticateInput(Options):
    username: str = leaf("Or an address.")
    password: str = leaf("As typed.")
    protocol: str = leaf("For the log.", default="API")
    scope: Scope = leaf("MASTER, IMAP, POP3, SMTP, …", default=Scope.MASTER)
    token: bool = leaf("Answer with an access token; only for MASTER.", default=False)
    token_ttl: Duration | None = leaf(
        "Unused that long, the token ends; PT1M to P180D, by default P14D.",
        default=strawberry.UNSET,
    )


@strawberry.type(description="Answer of authenticate.")
class AuthenticatePayload(MutationPayload):
    user: Annotated["User", strawberry.lazy("graph.users")] | None = leaf(
        "Who has signed in.", default=None
    )
    scope: Scope | None = leaf("What the password was good for.", default=None)
    require_password_change: bool = leaf("A new password should be set.", default=False)
    token: str | None = leaf("Shown once.", default=None, metadata=SECRET)
    expires_at: datetime | None = leaf(
        "When the token ends, unless it is used before.", default=None
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
class ApiKeyCreateInput(Options):
    name: str = leaf("What it is for.")
    role: Role = leaf("Up to one's own.", default=Role.USER)
    scopes: list[Scope] | None = leaf("Default: all of the role.", default=strawberry.UNSET)
    read_only: bool = leaf("Refuse any mutation.", default=False)
    user: UserRef | None = leaf(
        "Whose. Default: the viewer's; nobody's, where the role is ADMIN or above.",
        default=strawberry.UNSET,
    )
    expires_at: datetime | None = leaf("Default: never.", default=strawberry.UNSET)


@strawberry.type(description="Answer of apiKeyCreate.")
class ApiKeyCreatePayload(MutationPayload):
    api_key: ApiKey | None = leaf("The key.", default=None)
    secret: str | None = leaf("Shown once.", default=None, metadata=SECRET)


@strawberry.type
class AuthQuery:
    @query("The caller.", role=Role.PUBLIC)
    async def viewer(self, info: Info) -> Viewer:
        who = info.context.viewer
        return Viewer(role=who.role, scopes=sorted(who.scopes), read_only=who.read_only)

    @query("One's own keys, newest first; all for ADMIN.", scope=Scope.READ)
    async def api_keys(
        self,
        info: Info,
        first: int | None = strawberry.UNSET,
        after: str | None = strawberry.UNSET,
        last: int | None = strawberry.UNSET,
        before: str | None = strawberry.UNSET,
    ) -> Connection[ApiKey]:
        ctx, ask = info.context, page_asked(apikeys.NEWEST, first, after, last, before)
        return await connected(
            info,
            ApiKey,
            await apikeys.keys(ctx, ask, columns(info, ApiKey)),
            lambda row: Cursor(apikeys.NEWEST, row.created_at, row.id),
            lambda: apikeys.count_keys(ctx),
        )


@strawberry.type
class AuthMutation:
    @mutation("Sign in. Throttled by user and network.", role=Role.PUBLIC)
    async def authenticate(self, info: Info, input: AuthenticateInput) -> AuthenticatePayload:
        alone(info, input, "a sign-in")
        scope = Scope(input.scope)  # strawberry's sorted schemas hand over the bare text
        attempt = Attempt(scope, input.protocol, input.token, input.token_ttl or None)
        done = await auth.authenticate(info.context, input.username, input.password, attempt)
        return AuthenticatePayload(
            user=graph.users.User.of(done.user),
            scope=done.scope,
            require_password_change=done.require_password_change,
            token=done.token,
            expires_at=done.expires_at,
        )

    @mutation("End tokens. Without a credential nothing happens.", role=Role.PUBLIC)
    async def token_revoke(self, info: Info, input: TokenRevokeInput) -> TokenRevokePayload:
        keys = keys_of(info, "AccessToken", input.ids) if isinstance(input.ids, list) else None
        return TokenRevokePayload(revoked=await auth.revoke(info.context, keys, all=input.all))

    @mutation("Role up to one's own.", scope=Scope.MASTER)
    async def api_key_create(self, info: Info, input: ApiKeyCreateInput) -> ApiKeyCreatePayload:
        owner = found(await user_of(info, input.user), path=["user"]).id if input.user else None
        new = NewKey(
            name=input.name,
            role=Role(input.role),
            scopes=frozenset(map(Scope, input.scopes or ())),
            read_only=input.read_only,
            user_id=owner,
            expires_at=input.expires_at or None,
        )
        row, secret = await apikeys.create_key(info.context, new)
        return ApiKeyCreatePayload(api_key=ApiKey.of(row), secret=secret)

    @mutation("All or none; nobody deletes a key above themselves.", scope=Scope.MASTER)
    async def api_key_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        keys = keys_of(info, "ApiKey", input.ids)
        await apikeys.delete_keys(info.context, keys)
        return DeletePayload(deleted_ids=input.ids)
