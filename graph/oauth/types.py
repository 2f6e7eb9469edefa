"""GraphQL types and queries of OAuth clients and grants."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.oauth.references import OauthClientRef, load_client_id
from graph.types.connections import Connection, PageArguments, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.input_conditions import ConditionsInput
from graph.types.object_views import DerivedField
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from models.errors import NotFound
from models.oauth.tables import OauthGrantType, OauthScope
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from resolvers.list_orders import OwnerPageKey
from resolvers.oauth import client_loaders, grants
from resolvers.oauth.client_loaders import OauthClientOrder
from resolvers.oauth.grants import OauthGrantOrder
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

ADMIN_GUARD: dict[str, Any] = {"role": Role.ADMIN}
READ_GUARD: dict[str, Any] = {**ADMIN_GUARD, "scope": Scope.READ}


@strawberry.type(
    description="Program that signs users in by OAuth 2.1 or OpenID Connect.",
    directives=[Auth(**ADMIN_GUARD)],
)
class OauthClient(NodeView):
    client_id: str = attribute_field("Public identifier of the client (`client_id`).")
    name: str = attribute_field("Name that users read on the consent page.")
    has_secret: bool = attribute_field(
        "True if the OAuth client authenticates with a secret, which is never returned. False: a "
        "public client, such as a program on a phone."
    )
    redirect_uris: list[str] = attribute_field(
        "Redirect URIs that a request can name. Only the port of a loopback URI can differ. At "
        "most 20."
    )
    grant_types: list[OauthGrantType] = attribute_field("Ways in which the client gets tokens.")
    scopes: list[OauthScope] = attribute_field("Scopes that the client can request.")
    maker: str | None = attribute_field(
        "Username of the administrator who created the client, or `key NAME` for an API key of "
        "the platform. `operator`: a command on the server, or the bootstrap key. `dynamic "
        "registration`: the client registered itself (RFC 7591). Null: unknown."
    )
    created_at: datetime = attribute_field("Time when the OAuth client was created.")
    updated_at: datetime | None = attribute_field(
        "Time of the last change by oauthClientUpdate. Null: never changed."
    )
    secret_rotated_at: datetime | None = attribute_field(
        "Time of the last new secret. Null: the client has its first secret, or none."
    )
    last_used_at: datetime | None = attribute_field(
        "Time when the client last got tokens, at most an hour late. Null: never."
    )

    load_batch = staticmethod(client_loaders.load_visible_clients_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("OauthClient"),
        "maker": DerivedField(("created_by",), lambda name: name),
        "grant_types": DerivedField(
            ("grant_types",), lambda names: [OauthGrantType(name) for name in names]
        ),
        "scopes": DerivedField(("scopes",), lambda names: [OauthScope(name) for name in names]),
    }

    @field("Number of users who have given the client access.", "id")
    async def grant_count(self, info: Info) -> int:
        return await info.context.load(client_loaders.count_grants_of_clients, self.row.id)


@strawberry.type(description="Access that a user has given to an OAuth client.")
class OauthGrant(NodeView):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User who has given access. Null: the caller can't see the user.",
    )
    client_name: str = attribute_field(
        "Present name of the OAuth client, which users read on the consent page."
    )
    client_id: str = attribute_field("Public identifier of the client (`client_id`).")
    scopes: list[OauthScope] = attribute_field(
        "All scopes that the user has allowed the OAuth client since the last revocation."
    )
    created_at: datetime = attribute_field(
        "Time when the user first gave the OAuth client access, after the last revocation."
    )
    last_used_at: datetime | None = attribute_field(
        "Time when the OAuth client last got tokens for the user. Null: never."
    )

    load_batch = staticmethod(grants.load_visible_grants_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("OauthGrant"),
        "client_id": DerivedField(("public_client_id",), lambda client_id: client_id),
        "scopes": DerivedField(("scopes",), lambda names: [OauthScope(name) for name in names]),
    }


async def load_grant_page(
    info: Info, user_id: int, order_by: OauthGrantOrder, page_arguments: PageArguments
) -> Connection[OauthGrant]:
    """Load a page of the grants of a user."""
    list_order = grants.LIST_ORDERS[order_by]
    list_ordering = ordering_name(f"oauth-grants-{order_by}")
    requested_page = page_request(list_ordering, *page_arguments)
    page_key = OwnerPageKey(user_id, requested_page, list_order, selected_columns(info, OauthGrant))
    return await connection_of_page(
        info,
        OauthGrant,
        await info.context.load(grants.load_visible_grant_pages, page_key),
        lambda row: list_order.cursor_of_row(row, list_ordering),
        lambda: info.context.load(grants.count_grants, page_key),
    )


@strawberry.input(description="Conditions on OAuth clients.")
class OauthClientFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Returns only clients with this text in the name or the public identifier (case is "
        "ignored).",
        default=UNSET,
    )


@strawberry.type
class OauthQuery:
    @query(
        "Returns an OAuth client by ID or public identifier. Null: there is none. A malformed ID "
        "is an error.",
        **READ_GUARD,
    )
    async def oauth_client(self, info: Info, by: OauthClientRef) -> OauthClient | None:
        try:
            key = await load_client_id(info, by, "by")
        except NotFound:
            return None
        row = await info.context.load(client_loaders.load_visible_clients_by_id, key)
        return OauthClient.from_row_or_none(row)

    @query(
        (
            "Returns the OAuth clients of the platform, also those that have registered themselves "
            "(RFC 7591)."
        ),
        **READ_GUARD,
    )
    async def oauth_clients(
        self,
        info: Info,
        filter: OauthClientFilter | None = UNSET,
        order_by: OauthClientOrder = OauthClientOrder.CREATED_AT_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[OauthClient]:
        search_text = (filter.query or None) if filter else None
        list_order = client_loaders.LIST_ORDERS[order_by]
        list_ordering = ordering_name(f"oauth-clients-{order_by}", search_text)
        return await connection_of_page(
            info,
            OauthClient,
            await client_loaders.read_visible_client_page(
                info.context,
                search_text,
                page_request(list_ordering, first, after, last, before),
                selected_columns(info, OauthClient),
                order_by,
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: client_loaders.count_visible_clients(info.context, search_text),
        )
