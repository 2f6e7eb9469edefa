"""Queries of users."""

from datetime import datetime

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import leaf
from graph.types.fields import Info, query
from graph.types.input_conditions import Conditions
from graph.types.references import UserRef, items_of, plain, user_of
from graph.types.row_mapping import asked, columns
from graph.types.scalars import Cursor as ChangeCursor
from graph.users.types import User
from models.store.keyset_pages import Cursor, ordering
from models.users.roles import Role, Scope
from resolvers.changes import stream_reader
from resolvers.users import listing as user_listing
from resolvers.users.listing import UserOrder, UserWhere


@strawberry.input(description="For listings; fields are combined with AND.")
class UserFilter(Conditions):
    query: str | None = leaf(
        "Partial match of user name, name or main address; one or two letters: how user name or "
        "main address begin.",
        default=UNSET,
    )
    forward: str | None = leaf("Partial match of a forwarding target.", default=UNSET)
    tags: list[str] | None = leaf("Any of.", default=UNSET)
    required_tags: list[str] | None = leaf("All of.", default=UNSET)
    masks: list[str] | None = leaf("User names with * and ?.", default=UNSET)
    roles: list[Role] | None = leaf("Only these roles.", default=UNSET)
    domain: str | None = leaf("Main address in this domain.", default=UNSET)
    disabled: bool | None = leaf("Off or on.", default=UNSET)
    suspended: bool | None = leaf("Off or on.", default=UNSET)
    created_after: datetime | None = leaf("Made later than this.", default=UNSET)

    def where(self) -> UserWhere:
        """Convert the filter to conditions of the resolvers."""
        return UserWhere(
            query=self.query or None,
            forward=self.forward or None,
            tags=items_of(self.tags),
            required_tags=items_of(self.required_tags),
            masks=items_of(self.masks),
            roles=items_of(self.roles),
            domain=self.domain or None,
            disabled=plain(self.disabled),
            suspended=plain(self.suspended),
            created_after=self.created_after or None,
        )


@strawberry.type
class UserQuery:
    @query("One user; nothing = viewer.", scope=Scope.READ)
    async def user(self, info: Info, by: UserRef | None = UNSET) -> User | None:
        row = await user_of(info, by)
        user = User.maybe(row)
        if user and "cursor" in asked(
            info
        ):  # The cursor must not be later than the fields that are read after it.
            position = await info.context.load(stream_reader.by_streams, user.row.id)
            vars(user)["cursor"] = ChangeCursor(position) if position else None
        return user

    @query("Listing.", role=Role.DOMAIN_ADMIN, scope=Scope.READ)
    async def users(
        self,
        info: Info,
        filter: UserFilter | None = UNSET,
        order_by: UserOrder = UserOrder.USERNAME,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[User]:
        where = filter.where() if filter else UserWhere()
        list_ordering = ordering(f"users-{order_by}", None if where == UserWhere() else where)
        requested_page = page_asked(list_ordering, first, after, last, before)
        column_names = columns(info, User)
        return await connected(
            info,
            User,
            await user_listing.pages(info.context, where, requested_page, column_names, order_by),
            lambda row: Cursor(
                requested_page.ordering, user_listing.place_of(order_by, row), row.id
            ),
            lambda: user_listing.count(info.context, where),
        )
