"""GraphQL types and queries of open sessions."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, ClassVar

import strawberry
from strawberry import UNSET

from graph.types.connections import Connection, ConnectionSource, page_request
from graph.types.errors import attribute_field
from graph.types.fields import Auth, Info, query
from graph.types.input_conditions import ConditionsInput
from graph.types.object_access import OVERSEEN
from graph.types.object_references import ObjectRef
from graph.types.object_views import DerivedField, View
from graph.types.references import (
    UserSelection,
    optional_tuple,
    user_selector_from_selection,
    value_or_none,
)
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    objects_from_rows_with_links,
)
from graph.types.scalars import CIDR, IPAddress
from models.sessions.live_sessions import SessionService
from models.store.keyset_pages import ordering_name
from models.users.roles import Scope
from resolvers.sessions import listing
from resolvers.sessions.listing import SessionConditions, SessionOrder, SessionSummaryOrder
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

SESSION_COST = 50  # all processes answer
UNRESPONSIVE_NODES_DESCRIPTION = (
    "Nodes (`host:port`) with a process that did not answer within a second. Their sessions "
    "are missing. Empty if the list is complete."
)


@strawberry.type(
    description="Open connection of a client: a WebSocket, an event stream, or a connection by "
    "SMTP, submission or LMTP.",
    directives=[Auth(scope=Scope.READ)],
)
class Session(NodeView):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description=(
            "User who has signed in. Null: nobody has, an API key has that acts for no user, or "
            "the caller can't see the user."
        ),
    )
    service: SessionService = attribute_field("Service that the client uses.")
    ip: IPAddress | None = attribute_field(
        "IP address of the client, also behind a trusted proxy. Null: the connection has no IP "
        "address."
    )
    proxied: bool = attribute_field(
        "True if a trusted proxy or load balancer forwarded the connection."
    )
    destination_ip: IPAddress | None = attribute_field(
        "IP address of the node at which the connection arrived. Null: the connection has no IP "
        "address."
    )
    destination_port: int | None = attribute_field(
        "TCP port of the node at which the connection arrived. Null: the connection has no port."
    )
    node: str = attribute_field("Name (`host:port`) of the node that serves the session.")
    pid: int = attribute_field("Process ID of the process that serves the session.")
    connected_at: datetime = attribute_field("Time when the session began.")
    last_active_at: datetime = attribute_field(
        "Time of the last command or frame of the client, or of the last result for it."
    )
    subscription_count: int = attribute_field(
        "Number of open GraphQL subscriptions of the session. 0 for a connection by SMTP, "
        "submission or LMTP."
    )

    load_batch = staticmethod(listing.load_visible_sessions_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {"id": global_id_field("Session")}


@strawberry.type(
    description="Number of open sessions of one user on one service.",
    directives=[Auth(scope=Scope.READ)],
)
class SessionSummary(View):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description=(
            "User of the sessions. Null: the summary counts the sessions without a user, or the "
            "caller can't see the user."
        ),
    )
    service: SessionService = attribute_field("Service that the clients of these sessions use.")
    connection_count: int = attribute_field(
        "Number of open sessions of the user on the service, in all processes that answered."
    )
    ips: list[IPAddress] = attribute_field(
        "IP addresses of the clients of the sessions, each once, at most 100 for each process."
    )
    pids: list[int] = attribute_field(
        "Process IDs of the processes that serve the sessions, in ascending order."
    )


@dataclass(frozen=True, slots=True)
class ProcessListSource(ConnectionSource):
    """The source of a connection whose items come from all processes."""

    unresponsive_nodes: Sequence[str] = ()


_CONNECTION_FIELDS: Mapping[str, DerivedField] = {
    **Connection.derived_fields,
    "unresponsive_nodes": DerivedField((), lambda paged: list(paged.unresponsive_nodes)),
}


@strawberry.type(description="A page of a list of sessions.")
class SessionConnection(Connection[Session]):
    unresponsive_nodes: list[str] = attribute_field(UNRESPONSIVE_NODES_DESCRIPTION)

    derived_fields: ClassVar[Mapping[str, DerivedField]] = _CONNECTION_FIELDS


@strawberry.type(description="A page of a list of session summaries.")
class SessionSummaryConnection(Connection[SessionSummary]):
    unresponsive_nodes: list[str] = attribute_field(UNRESPONSIVE_NODES_DESCRIPTION)

    derived_fields: ClassVar[Mapping[str, DerivedField]] = _CONNECTION_FIELDS


@strawberry.input(one_of=True, description="Reference to one session.")
class SessionRef(ObjectRef):
    pass


@strawberry.input(description="Conditions on sessions. All must hold.")
class SessionFilter(ConditionsInput):
    users: UserSelection | None = attribute_field(
        "Returns only sessions of these users, and none without a user.", default=UNSET
    )
    services: list[SessionService] | None = attribute_field(
        "Returns only sessions on one of these services. An empty list returns none.", default=UNSET
    )
    proxied: bool | None = attribute_field(
        "True returns only sessions that a trusted proxy or load balancer forwarded, false only "
        "others.",
        default=UNSET,
    )
    network: CIDR | None = attribute_field(
        "Returns only sessions of clients with an IP address in this network.", default=UNSET
    )

    def to_conditions(self) -> SessionConditions:
        """Return the conditions for the resolvers. Raises InvalidInput if an ID is malformed."""
        users = value_or_none(self.users)
        return SessionConditions(
            user_selector_from_selection(users, path="filter") if users else None,
            optional_tuple(self.services),
            value_or_none(self.proxied),
            value_or_none(self.network),
        )


def _conditions_from_filter(session_filter: SessionFilter | None) -> SessionConditions:
    given_filter = value_or_none(session_filter)
    return given_filter.to_conditions() if given_filter else SessionConditions()


def _ordering(name: str, conditions: SessionConditions) -> str:
    return ordering_name(name, None if conditions == SessionConditions() else conditions)


@strawberry.type
class SessionQuery:
    @query(
        "Returns the connections that are open on all nodes: SMTP, submission, LMTP, WebSocket "
        "and event stream. Other HTTP requests are not listed. The signed-in user gets the own "
        "connections. Administrators also get those of other users, and an ADMIN those without a "
        "user. If a process does not answer within one second, its connections are missing. The "
        "field `unresponsiveNodes` of the page names the node of that process.",
        scope=Scope.READ,
        access=OVERSEEN,
        cost=SESSION_COST,
    )
    async def sessions(
        self,
        info: Info,
        filter: SessionFilter | None = UNSET,
        order_by: SessionOrder = SessionOrder.CONNECTED_AT_DESC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> SessionConnection:
        conditions = _conditions_from_filter(filter)
        ordering = _ordering(f"sessions-{order_by}", conditions)
        requested_page = page_request(ordering, first, after, last, before)
        result = await listing.read_visible_session_page(
            info.context, conditions, requested_page, order_by
        )

        async def return_total_count() -> int:
            return result.total_count or 0

        return SessionConnection.from_row(
            ProcessListSource(
                result.page,
                await objects_from_rows_with_links(info, Session, result.page.rows),
                lambda row: listing.cursor_of_session(row, ordering),
                return_total_count,
                unresponsive_nodes=result.unresponsive_nodes,
            )
        )

    @query(
        "Returns the numbers of open sessions on all nodes, by user and service. The signed-in "
        "user gets the numbers of the own sessions. Administrators also get those of other users, "
        "and an ADMIN those without a user. The sessions of a process that does not answer within "
        "a second are missing: `unresponsiveNodes` has its node.",
        scope=Scope.READ,
        access=OVERSEEN,
        cost=SESSION_COST,
    )
    async def session_summaries(
        self,
        info: Info,
        filter: SessionFilter | None = UNSET,
        order_by: SessionSummaryOrder = SessionSummaryOrder.USER_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> SessionSummaryConnection:
        conditions = _conditions_from_filter(filter)
        ordering = _ordering(f"session-summaries-{order_by}", conditions)
        requested_page = page_request(ordering, first, after, last, before)
        result = await listing.read_visible_summary_page(
            info.context, conditions, requested_page, order_by
        )

        async def load_total_count() -> int:
            if result.total_count is not None:
                return result.total_count
            return await listing.count_visible_summaries(info.context, conditions)

        return SessionSummaryConnection.from_row(
            ProcessListSource(
                result.page,
                await objects_from_rows_with_links(info, SessionSummary, result.page.rows),
                lambda row: listing.cursor_of_summary(row, ordering),
                load_total_count,
                unresponsive_nodes=result.unresponsive_nodes,
            )
        )
