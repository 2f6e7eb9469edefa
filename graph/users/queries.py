"""Queries of users."""

from datetime import datetime
from typing import Annotated

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Info, query
from graph.types.input_conditions import ConditionsInput
from graph.types.object_access import ACCOUNTS, DOMAINS
from graph.types.references import (
    DomainRef,
    UserRef,
    domain_selector_from_ref,
    load_visible_user_or_require_viewer,
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


@strawberry.input(description="Conditions on accounts. All must hold.")
class UserFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Returns only accounts with this text in the username, display name or main address, in "
        "any case. A text of 1 or 2 characters must be the beginning of the username or main "
        "address.",
        default=UNSET,
    )
    forward: str | None = attribute_field(
        "Returns only accounts with this text in a forwarding target (case is ignored). At most "
        "1,000 "
        "characters.",
        default=UNSET,
    )
    tags: list[str] | None = attribute_field(
        "Returns only accounts with at least one of these tags (case is ignored). At most 100.",
        default=UNSET,
    )
    required_tags: list[str] | None = attribute_field(
        "Returns only accounts with all of these tags (case is ignored). At most 100.",
        default=UNSET,
    )
    patterns: list[str] | None = attribute_field(
        "Returns only accounts whose username matches one of these patterns: `*` matches any "
        "characters, `?` one character. At most 100.",
        default=UNSET,
    )
    roles: list[Role] | None = attribute_field(
        "Returns only accounts with one of these roles.", default=UNSET
    )
    domain: DomainRef | None = attribute_field(
        "Returns only accounts with the main address in this domain.", default=UNSET
    )
    active: bool | None = attribute_field(
        "True returns only active accounts, false only the others.", default=UNSET
    )
    suspended: bool | None = attribute_field(
        "True returns only suspended accounts, false only the others.", default=UNSET
    )
    created_since: datetime | None = attribute_field(
        "Returns only accounts created at this time or later.", default=UNSET
    )
    created_before: datetime | None = attribute_field(
        "Returns only accounts created before this time.", default=UNSET
    )
    not_signed_in_since: datetime | None = attribute_field(
        "Returns only accounts whose last sign-in (`lastLoginAt`) was before this time, and "
        "accounts that never signed in.",
        default=UNSET,
    )
    quota_reached: bool | None = attribute_field(
        "True returns only accounts whose messages take at least as many bytes as the quota "
        "allows, false only the others. Accounts with unlimited storage are among the others.",
        default=UNSET,
    )
    has_second_factor: bool | None = attribute_field(
        "True returns only accounts with a second factor (2FA, MFA), false only accounts without "
        "one.",
        default=UNSET,
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
            not_signed_in_since=self.not_signed_in_since or None,
            is_quota_full=value_or_none(self.quota_reached),
            has_second_factor=value_or_none(self.has_second_factor),
        )


@strawberry.type
class UserQuery:
    @query(
        "Returns an account by ID, username or address. Null if it does not exist or the caller "
        "can't see it.",
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
        "Returns accounts of all roles: that of the signed-in user, and those of the administered "
        "domains, or for an ADMIN all accounts. Deleted accounts are left out.",
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
