"""GraphQL type of the targets that a stored message is forwarded to."""

import strawberry

from graph.types.errors import attribute_field
from models.queue.forward_target_kinds import ForwardTargetKind
from resolvers.submission.message_redirect import ForwardDestination


@strawberry.type(description="Target that a message is forwarded to.")
class ForwardTarget:
    number: int = attribute_field(
        "Number of the target, counted from 1: among the original targets of the "
        "message, or among the different addresses in `to` of `messageRedirect`."
    )
    type: ForwardTargetKind = attribute_field(
        "Kind of the target: email address, relay host, or URL that receives the message by HTTP "
        "POST."
    )
    value: str = attribute_field(
        "Email address, or URL of a relay host or webhook. A password in a URL is shown as `***`."
    )

    @classmethod
    def from_target(cls, target: ForwardDestination) -> "ForwardTarget":
        """Return the GraphQL object of a target."""
        return cls(number=target.number, type=target.kind, value=target.display_target)
