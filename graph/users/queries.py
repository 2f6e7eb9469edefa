"""Queries of users."""

from datetime import datetime
from typing import Annotated

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Info, query
from graph.types.input_conditions import ConditionsInput
from graph.types.references import (
    DomainRef,
    UserRef,
    domain_selector_from_ref,
    load_user_or_viewer,
    optional_tuple,
    value_or_none,
)
from graph.types.row_mapping import selected_columns, selected_fields
from graph.types.scalars import Cursor as ChangeCursor
from graph.users.types import User
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from resolvers.changes import stream_reader
from resolvers.users import listing as user_listing
from resolvers.users.listing import UserConditions, UserOrder


@strawberry.input(description="For listings; fields are combined with AND.")
class UserFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Partial match of user name, name or main address; one or two letters: how user name or "
        "main address begin.",
        default=UNSET,
    )
    forward: str | None = attribute_field("Partial match of a forwarding target.", default=UNSET)
    tags: list[str] | None = attribute_field("Any of.", default=UNSET)
    required_tags: list[str] | None = attribute_field("All of.", default=UNSET)
    patterns: list[str] | None = attribute_field("User names with * and ?.", default=UNSET)
    roles: list[Role] | None = attribute_field("Only these roles.", default=UNSET)
    domain: DomainRef | None = attribute_field(
        "Users with the main address in this domain.", default=UNSET
    )
    active: bool | None = attribute_field(
        "Only users that are active, or only those that are not.", default=UNSET
    )
    suspended: bool | None = attribute_field("Off or on.", default=UNSET)
    created_since: datetime | None = attribute_field(
        "Users created at this time or later.", default=UNSET
    )
    created_before: datetime | None = attribute_field(
        "Users created before this time.", default=UNSET
    )

    def to_conditions(self) -> UserConditions:
        """Convert the filter to conditions of the resolvers."""
        return UserConditions(
            query=self.query or None,
            target_part=self.forward or None,
            tags=optional_tuple(self.tags),
            required_tags=optional_tuple(self.required_tags),
            patterns=optional_tuple(self.patterns),
            roles=optional_tuple(self.roles),
            domain=domain_selector_from_ref(self.domain, path="filter") if self.domain else None,
            active=value_or_none(self.active),
            suspended=value_or_none(self.suspended),
            created_since=self.created_since or None,
            created_before=self.created_before or None,
        )


@strawberry.type
class UserQuery:
    @query("One user; nothing = viewer.", scope=Scope.READ)
    async def user(
        self,
        info: Info,
        by: Annotated[
            UserRef | None,
            strawberry.argument(description="User to return. Default: the signed-in user."),
        ] = UNSET,
    ) -> User | None:
        row = await load_user_or_viewer(info, by)
        user = User.from_row_or_none(row)
        if user and "cursor" in selected_fields(
            info
        ):  # The cursor must not be later than the fields that are read after it.
            position = await info.context.load(
                stream_reader.load_last_stream_positions_by_user, user.row.id
            )
            vars(user)["cursor"] = ChangeCursor(position) if position else None
        return user

    @query("Listing.", role=Role.DOMAIN_ADMIN, scope=Scope.READ)
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
            await user_listing.load_user_page(
                info.context, conditions, requested_page, column_names, order_by
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: user_listing.count_users(info.context, conditions),
        )
