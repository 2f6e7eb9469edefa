"""What became of a message, as the API shows it."""

from datetime import datetime

import strawberry
from strawberry import UNSET

from graph.errors import leaf
from graph.fields import Info, query
from graph.views import View
from models.messagetrace import LogComponent
from models.roles import Role, Scope
from resolvers import messagetrace
from resolvers.messagetrace import Sought

strawberry.enum(LogComponent, description="A part of the server that decides about mail.")


@strawberry.type(description="A step of a message for one recipient.")
class MessageTraceEvent(View):
    at: datetime = leaf(
        "When; of a delivery that has not reached its recipient, when it was queued."
    )
    queue_id: str = leaf("That was given when it came in, or into the queue.")
    component: LogComponent = leaf("What decided.")
    event: str = leaf(
        "accepted, turned away, judged, held, released, stored, not stored, answered, not "
        "answered, sent on, not sent on, dropped or refused of what came in; queued, copied, and "
        "the state of each delivery of what goes out. More may come."
    )
    detail: str | None = leaf("More about it, for people.")
    address: str | None = leaf("Of the recipient, as given.")


@strawberry.type
class MessageTraceQuery:
    @query(
        "Way of a message, in its order: by the id that its sender was given with the 250, or "
        "that it has in the queue, or by its Message-ID. What goes to no domain of the viewer's "
        "looks like what is not there.",
        role=Role.DOMAIN_ADMIN,
        scope=Scope.READ,
    )
    async def message_trace(
        self,
        info: Info,
        queue_id: str | None = UNSET,
        message_id: str | None = UNSET,
        address: str | None = UNSET,
    ) -> list[MessageTraceEvent]:
        sought = Sought(
            queue_id if isinstance(queue_id, str) else None,
            message_id if isinstance(message_id, str) else None,
            address or None,
        )
        return [MessageTraceEvent.of(one) for one in await messagetrace.trace(info.context, sought)]
