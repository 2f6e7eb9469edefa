"""Queries of users."""

from typing import Annotated

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.fields import Info, query
from graph.types.object_access import ACCOUNTS, DOMAINS
from graph.types.references import UserRef, load_visible_user_or_require_viewer
from graph.types.row_mapping import selected_columns, selected_fields
from graph.types.scalars import Cursor as ChangeCursor
from graph.users.filters import UserFilter
from graph.users.types import User
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from resolvers.changes import stream_reader
from resolvers.users import listing as user_listing
from resolvers.users.listing import UserConditions, UserOrder


@strawberry.type
class UserQuery:
    @query(
        "Returns an account by ID, username or address. Null if it does not exist, is deleted, or "
        "the caller can't see it.",
        scope=Scope.READ,
        access=ACCOUNTS,
    )
    async def user(
        self,
        info: Info,
        by: Annotated[
            UserRef | None,
            strawberry.argument(description="Account to return. Default: the signed-in user."),
        ] = UNSET,
    ) -> User | None:
        row = await load_visible_user_or_require_viewer(info, by)
        user = User.from_row_or_none(row)
        if user and "cursor" in selected_fields(
            info
        ):  # The cursor must not be later than the fields that are read after it.
            position = await info.context.load(
                stream_reader.load_last_stream_positions_by_user, user.row.id
            )
            vars(user)["cursor"] = ChangeCursor(position) if position else None
        return user

    @query(
        "Returns the account of the signed-in user and all accounts of administered domains, of "
        "every role. An ADMIN gets all accounts. Disabled and suspended accounts are included. "
        "Deleted accounts are left out (`deletedUsers`).",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
        access=DOMAINS,
    )
    async def users(
        self,
        info: Info,
        filter: UserFilter | None = UNSET,
        order_by: UserOrder = UserOrder.USERNAME_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[User]:
        conditions = filter.to_conditions() if filter else UserConditions()
        list_ordering = ordering_name(
            f"users-{order_by}", None if conditions == UserConditions() else conditions
        )
        requested_page = page_request(list_ordering, first, after, last, before)
        list_order = user_listing.LIST_ORDERS[order_by]
        column_names = selected_columns(info, User)
        return await connection_of_page(
            info,
            User,
            await user_listing.load_visible_user_page(
                info.context, conditions, requested_page, column_names, order_by
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: user_listing.count_visible_users(info.context, conditions),
        )
