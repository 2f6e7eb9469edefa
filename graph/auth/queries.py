"""Queries of the caller and of API keys."""

import strawberry
from strawberry import UNSET

from graph.auth.types import ApiKey, Viewer
from graph.types import global_ids
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Info, query
from graph.types.input_conditions import ConditionsInput
from graph.types.object_access import OWN_OR_OVERSEEN
from graph.types.references import UserRef, load_visible_user
from graph.types.row_mapping import selected_columns
from models.store.keyset_pages import ordering_name
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from resolvers.auth.api_keys import loaders as api_key_loaders
from resolvers.auth.api_keys.loaders import ApiKeyConditions, ApiKeyOrder


@strawberry.input(description="Conditions on API keys. All must hold.")
class ApiKeyFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Returns only API keys with this text in `name` (case is ignored).", default=UNSET
    )
    user: UserRef | None = attribute_field(
        "Returns only API keys of this user, not those of the platform. The list is "
        "empty if the caller can't see such a user.",
        default=UNSET,
    )

    maker: UserRef | None = attribute_field(
        "Returns only API keys that this account created for another user, or for no user. An "
        "unknown account matches no key. A deleted account can only be referred to by its ID.",
        default=UNSET,
    )

    async def resolve_conditions_or_match_nothing(self, info: Info) -> ApiKeyConditions:
        """Convert the filter to conditions of the resolvers. An unknown user selects no key."""
        user = await load_visible_user(info, self.user) if self.user else None
        return ApiKeyConditions(
            query=self.query or None,
            user_id=(user.id if user else 0) if self.user else None,
            maker_id=await self._maker_id(info),
        )

    async def _maker_id(self, info: Info) -> int | None:
        """Return the id of the maker, 0 for an unknown one, or None without a condition."""
        if not self.maker:
            return None
        if self.maker.id:  # also of a deleted account
            path = ("filter", "maker", "id")
            return global_ids.decode("User", self.maker.id.value, path=path)
        maker = await load_visible_user(info, self.maker)
        return maker.id if maker else 0


@strawberry.type
class AuthQuery:
    @query(
        "Returns the caller of this request. Without a credential, or before the second factor of "
        "the sign-in is proved, the role is PUBLIC. With a wrong or expired credential, the whole "
        "request fails.",
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
        "Returns API keys without their secrets, also inactive and expired ones. An ADMIN gets "
        "all API keys. Other callers get the API keys of the signed-in user. If an API key "
        "authenticates the request, the list also has this key. An API key that is restricted to "
        "domains gets only itself.",
        scope=Scope.READ,
        access=OWN_OR_OVERSEEN,
    )
    async def api_keys(
        self,
        info: Info,
        filter: ApiKeyFilter | None = UNSET,
        order_by: ApiKeyOrder = ApiKeyOrder.CREATED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[ApiKey]:
        conditions = (
            await filter.resolve_conditions_or_match_nothing(info) if filter else ApiKeyConditions()
        )
        list_ordering = ordering_name(
            f"api-keys-{order_by}", None if conditions == ApiKeyConditions() else conditions
        )
        list_order = api_key_loaders.LIST_ORDERS[order_by]
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            ApiKey,
            await api_key_loaders.load_visible_api_key_page(
                info.context, conditions, requested_page, selected_columns(info, ApiKey), order_by
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: api_key_loaders.count_visible_api_keys(info.context, conditions),
        )
