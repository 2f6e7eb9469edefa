"""GraphQL types and inputs of sign-in, access tokens and API keys."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry

import graph.users.types
from graph.auth.app_passwords import AppPassword
from graph.domains.domain_lists import DomainListRequest, load_viewer_domain_page
from graph.domains.filters import DomainFilter
from graph.domains.types import Domain
from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import MutationPayload, attribute_field
from graph.types.fields import Info, field
from graph.types.idempotent_payloads import SECRET_METADATA
from graph.types.object_views import DerivedField, WholeSourceField
from graph.types.row_mapping import NodeView, global_id_field, link, selected_columns
from graph.types.scalars import CIDR, IPAddress
from models.auth.security_log import AuthProtocol
from models.oauth.tables import OauthScope
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from resolvers.auth import (
    access_tokens,
    app_passwords,
)
from resolvers.auth.access_tokens import AccessTokenOrder
from resolvers.auth.api_keys import loaders as api_key_loaders
from resolvers.auth.token_scopes import SCOPE_COLUMNS, names_in_order, scopes_of_token
from resolvers.domains import loaders as domain_loaders
from resolvers.domains.loaders import DomainOrder
from resolvers.list_orders import OwnerPageKey
from resolvers.users import loaders as users

if TYPE_CHECKING:
    from graph.users.types import User


def user_from_row_or_none(row: Any) -> "User | None":
    """Return the user of a row; None without a row."""
    return graph.users.types.User.from_row_or_none(row)


@strawberry.type(
    description=(
        "Short-lived credential of a user: the result of `authenticate` or `userImpersonate`, or a "
        "token that an OAuth client obtained (RFC 6749)."
    )
)
class AccessToken(NodeView):
    created_at: datetime = attribute_field(
        "Time when `authenticate`, `userImpersonate` or an OAuth client created the access token."
    )
    expires_at: datetime = attribute_field(
        "Time when the access token expires unless it is used before. A recorded use moves this "
        "time to the use plus the `tokenTtl` of the sign-in, but not beyond the age in the setting "
        "tokens.maxAge. A token of userImpersonate or of an OAuth client is not extended. A token "
        "that lacks its second factor expires at most 10 minutes after its creation."
    )
    last_used_at: datetime = attribute_field(
        "Time of the last recorded use, at first the time of creation. A use is recorded at most "
        "once an hour, and more often if `tokenTtl` is below 4 hours."
    )
    ip: IPAddress | None = attribute_field(
        "IP address of the client that created the access token. Null: unknown."
    )
    protocol: AuthProtocol | None = attribute_field(
        "Protocol that the client named at the sign-in. API: the client named none, or the access "
        "token is one of `userImpersonate`. HTTP: an OAuth client obtained the access token, or "
        "the client named HTTP. It is never null."
    )
    scopes: list[Scope] = attribute_field(
        "Scopes of the access token: those that the sign-in asked for, by default FULL. A token "
        "of `userImpersonate` has READ, MAIL, SUBMIT and SETTINGS. A token from a temporary "
        "password has SETTINGS, and can only set a new password; then it has the scopes that the "
        "sign-in asked for. A token of an OAuth client has the scopes that `oauthScopes` gives. "
        "Its DOMAIN_ADMIN is FULL here, which is "
        "valid while its user has this role."
    )
    oauth_scopes: list[OauthScope] | None = attribute_field(
        "OAuth scopes of an access token that an OAuth client obtained. Null: the access token "
        "comes from a sign-in or from `userImpersonate`."
    )
    current: bool = attribute_field("True for the access token of this request.")

    load_batch = staticmethod(access_tokens.load_own_tokens_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("AccessToken"),
        "scopes": WholeSourceField(
            SCOPE_COLUMNS,
            lambda row: [Scope(name) for name in names_in_order(scopes_of_token(row))],
        ),
        "expires_at": WholeSourceField(
            ("expires_at", "pending", "created_at"), access_tokens.end_of_unused_token
        ),
        "oauth_scopes": DerivedField(
            ("oauth_scopes",), lambda names: names and [OauthScope(name) for name in names]
        ),
    }


async def load_access_token_page(
    info: Info, user_id: int, order_by: AccessTokenOrder, page_arguments: PageArguments
) -> Connection[AccessToken]:
    """Load a page of the valid access tokens of a user."""
    list_order = access_tokens.LIST_ORDERS[order_by]
    requested_page = page_request(f"access-tokens-{order_by}", *page_arguments)
    page_key = OwnerPageKey(
        user_id, requested_page, list_order, selected_columns(info, AccessToken)
    )
    return await connection_of_page(
        info,
        AccessToken,
        await info.context.load(access_tokens.load_own_token_pages, page_key),
        lambda row: list_order.cursor_of_row(row, requested_page.ordering),
        lambda: info.context.load(access_tokens.count_own_tokens, page_key),
    )


@strawberry.type(description="Long-lived credential for programs.")
class ApiKey(NodeView):
    name: str = attribute_field("Purpose of the API key.")
    role: Role = attribute_field(
        "Role of the API key. Its rights never exceed the present role of its user. With "
        "`domains`, the key acts as a DOMAIN_ADMIN, even if this role is higher."
    )
    scopes: list[Scope] = attribute_field("Scopes of the API key. Empty: all scopes of its role.")
    read_only: bool = attribute_field("True if the API key can't run mutations.")
    maker: str | None = attribute_field(
        "Username of the administrator, or `key NAME` for an API key without a user, who created "
        "the API key for its user. Null: the user or the operator of the server created the key, "
        "or the key has no user."
    )
    created_at: datetime = attribute_field("Time when the API key was created.")
    expires_at: datetime | None = attribute_field("Time when the API key expires. Null: never.")
    last_used_at: datetime | None = attribute_field(
        "Time of the last use, recorded at most once an hour. Null: never used."
    )
    last_used_ip: IPAddress | None = attribute_field(
        "IP address of the client at the last recorded use. Null: the key was never used, or the "
        "last recorded use was by an open WebSocket connection or event stream."
    )
    active: bool = attribute_field(
        "False: the API key is refused until `apiKeyUpdate` activates it. A key with true is also "
        "refused if it has expired, or its user is disabled or suspended. The same holds if its "
        "maker lost the right to create it, or the user of a key with `domains` administers none "
        "of them."
    )
    allowed_ips: list[CIDR] = attribute_field(
        "Networks from which the API key is accepted. Empty: all networks. At most 100."
    )
    operations: list[str] = attribute_field(
        "Root fields that the API key can use. Empty: all root fields. A key with such a list is "
        "refused by HTTP paths other than GraphQL, such as downloads. At most 100."
    )
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        users.load_visible_users_by_id,
        user_from_row_or_none,
        description=(
            "User that the API key belongs to. Null: the key belongs to no user, to one who is "
            "deleted, or to one whom the caller can't see."
        ),
    )

    load_batch = staticmethod(api_key_loaders.load_visible_api_keys_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("ApiKey"),
        "scopes": DerivedField(("scopes",), lambda scopes: [Scope(scope) for scope in scopes]),
    }

    @field(
        "Domains that the API key administers as a DOMAIN_ADMIN, without acting for a user. "
        "Empty: the key acts for its user, or with all rights of its role. At most 100.",
        "domains",
    )
    async def domains(self, info: Info) -> list[Domain]:
        rows = await info.context.load_many(
            domain_loaders.load_visible_domains_by_id, self.row.domains
        )
        return [Domain.from_row(row) for row in rows if row is not None]


@strawberry.type(description="Caller of this request, with the rights of the credential.")
class Viewer:
    role: Role = attribute_field(
        "Role that the credential has now. PUBLIC: no credential, or a sign-in that lacks its "
        "second factor. USER for an application password, a token of `userImpersonate`, a token "
        "from a temporary password, and an API key with a `maker`. A token of an OAuth client has "
        "USER, or DOMAIN_ADMIN with the OAuth scope of this name. An API key with `domains` has "
        "DOMAIN_ADMIN."
    )
    scopes: list[Scope] = attribute_field(
        "Scopes of the credential. Empty: no credential, or a sign-in that lacks its second factor."
    )
    read_only: bool = attribute_field("True if the credential is a read-only API key.")
    admin_permissions: list[AdminPermission] = attribute_field(
        "Permissions that the caller has as a DOMAIN_ADMIN in the administered domains. Empty for "
        "other roles; an ADMIN needs none."
    )
    permissions: list[UserPermission] = attribute_field(
        "Permissions that the signed-in user has as a USER for the own account. Empty for other "
        "roles; higher roles need none."
    )

    @field(
        "User that the credential acts for: the signed-in or the impersonated one. Null: no "
        "credential, a sign-in that lacks its second factor, or an API key that has no user or is "
        "restricted to domains."
    )
    async def user(
        self, info: Info
    ) -> Annotated["User", strawberry.lazy("graph.users.types")] | None:
        key = info.context.viewer.user_id
        return (
            user_from_row_or_none(await info.context.load(users.load_visible_users_by_id, key))
            if key
            else None
        )

    @field(
        "User that the request acts as, by a credential that an administrator or an API key of "
        "the platform created for this user. Null: no such credential."
    )
    async def impersonating(
        self, info: Info
    ) -> Annotated["User", strawberry.lazy("graph.users.types")] | None:
        viewer = info.context.viewer
        row = (
            await info.context.load(users.load_visible_users_by_id, viewer.user_id)
            if viewer.is_acting
            else None
        )
        return user_from_row_or_none(row)

    @field(
        "Domains that the caller administers as a DOMAIN_ADMIN. Empty for other roles, although "
        "an ADMIN administers every domain."
    )
    async def administers(
        self,
        info: Info,
        filter: DomainFilter | None = strawberry.UNSET,
        order_by: DomainOrder = DomainOrder.NAME_ASC,
        first: int | None = strawberry.UNSET,
        after: str | None = strawberry.UNSET,
        last: int | None = strawberry.UNSET,
        before: str | None = strawberry.UNSET,
    ) -> Connection[Domain]:
        request = DomainListRequest(
            Domain, filter or None, order_by, PageArguments(first, after, last, before)
        )
        return await load_viewer_domain_page(info, request)

    @field("API key of this request. Null: another credential, the bootstrap key, or none.")
    async def api_key(self, info: Info) -> ApiKey | None:
        key = info.context.viewer.api_key_id
        row = (
            await info.context.load(api_key_loaders.load_visible_api_keys_by_id, key)
            if key
            else None
        )
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


@strawberry.type(description="Payload of accessTokenRevoke.")
class AccessTokenRevokePayload(MutationPayload):
    revoked_count: int = attribute_field("Number of revoked access tokens.", default=0)


@strawberry.type(description="Payload of apiKeyCreate.")
class ApiKeyCreatePayload(MutationPayload):
    api_key: ApiKey | None = attribute_field(
        "The new API key, without its secret. Null: the mutation failed.", default=None
    )
    secret: str | None = attribute_field(
        "Secret of the API key, which is returned once. Null: the mutation failed, or it was a "
        "dry run.",
        default=None,
        metadata=SECRET_METADATA,
    )


@strawberry.type(description="Payload of apiKeyUpdate.")
class ApiKeysPayload(MutationPayload):
    api_keys: list[ApiKey] = attribute_field(
        "Changed API keys, in the order of the references.", default_factory=list
    )


@strawberry.type(description="Payload of authCacheFlush.")
class AuthCacheFlushPayload(MutationPayload):
    flushed_count: int = attribute_field(
        "Number of credentials that this process removed from its cache.", default=0
    )
