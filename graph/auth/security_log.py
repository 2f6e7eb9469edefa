"""GraphQL types and query of the security log."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET
from strawberry.scalars import JSON

from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Auth, Info, query
from graph.types.input_conditions import ConditionsInput
from graph.types.object_views import DerivedField
from graph.types.references import UserRef, load_user_or_viewer_id, value_or_none
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from graph.types.scalars import CIDR, IPAddress
from models.auth.security_log import AuthEventAction, AuthEventResult, AuthProtocol
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Role, Scope
from resolvers.auth import security_log
from resolvers.auth.security_log import SecurityEventFilter, SecurityEventPageKey
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

UNKNOWN_USER_ID = 0  # no account has this id


@strawberry.type(
    description="An entry of the security log: a sign-in, a failed attempt, or a change to "
    "a credential.",
    directives=[Auth(scope=Scope.READ)],
)
class AuthEvent(NodeView):
    action: AuthEventAction = attribute_field("Action that the event records.")
    result: AuthEventResult = attribute_field(
        "Result of the action, or the state of the user that prevented it."
    )
    session_id: str | None = attribute_field(
        "Session that a trusted front end named at the last of the equal events."
    )
    ip: IPAddress | None = attribute_field(
        "IP address of the client at the last of the equal events."
    )
    protocol: AuthProtocol | None = attribute_field(
        "Protocol of the sign-in. Null: the action is no sign-in."
    )
    by: str | None = attribute_field(
        "Name of the administrator or API key that acted. Null: the user did."
    )
    detail: JSON | None = attribute_field(
        "Details of the last of the equal events. They contain no secrets."
    )
    count: int = attribute_field(
        "Number of equal events that this entry counts. Events within 6 hours of "
        "the first one are counted together."
    )
    created_at: datetime = attribute_field("Time of the first of the equal events.")
    last_at: datetime = attribute_field("Time of the last of the equal events.")
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User that the event is about. Null: the name of the sign-in belongs to no "
        "user.",
    )

    load_batch = staticmethod(security_log.load_visible_events_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("AuthEvent")}


@strawberry.input(description="Conditions on security events; all conditions must hold.")
class AuthLogFilter(ConditionsInput):
    user: UserRef | None = attribute_field(
        "User that the events are about. `User.authLog` refuses this condition.", default=UNSET
    )
    action: AuthEventAction | None = attribute_field("Action of the events.", default=UNSET)
    ip: IPAddress | None = attribute_field("IP address of the client.", default=UNSET)
    network: CIDR | None = attribute_field(
        "Network that contains the IP address of the client.", default=UNSET
    )
    result: AuthEventResult | None = attribute_field("Result of the events.", default=UNSET)
    protocol: AuthProtocol | None = attribute_field("Protocol that the client used.", default=UNSET)
    since: datetime | None = attribute_field(
        "Earliest time of the first of equal events, inclusive.", default=UNSET
    )
    before: datetime | None = attribute_field(
        "Latest time of the first of equal events, exclusive.", default=UNSET
    )

    def to_conditions(self) -> SecurityEventFilter:
        """Convert the filter to conditions of the resolvers. Absent fields are left out."""
        values = {
            name: value
            for name, value in vars(self).items()
            if name != "user" and value_or_none(value) is not None
        }
        return SecurityEventFilter(**values)


async def load_event_page(
    info: Info, user_id: int | None, filter: AuthLogFilter | None, *page_arguments: object
) -> Connection[AuthEvent]:
    """Load a page of the events of one account, or of all accounts if `user_id` is None.

    `page_arguments` are: first, after, last, before.
    """
    ctx, conditions = info.context, filter.to_conditions() if filter else SecurityEventFilter()
    requested_page = page_request(
        ordering_name(security_log.CURSOR_KIND, conditions), *page_arguments
    )
    page_key = SecurityEventPageKey(
        requested_page, selected_columns(info, AuthEvent), conditions, user_id
    )
    return await connection_of_page(
        info,
        AuthEvent,
        await ctx.load(security_log.load_event_pages, page_key),
        lambda row: Cursor(requested_page.ordering, row.created_at, row.id),
        lambda: ctx.load(security_log.count_events, page_key),
    )


@strawberry.type
class AuthLogQuery:
    @query(
        "Returns security events of all users of the administered domains. An ADMIN "
        "sees the events of every user, and events without a user. Newest first.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
    )
    async def auth_log(
        self,
        info: Info,
        filter: AuthLogFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[AuthEvent]:
        user = filter.user if filter else None
        owner = (await load_user_or_viewer_id(info, user) or UNKNOWN_USER_ID) if user else None
        return await load_event_page(info, owner, filter, first, after, last, before)
