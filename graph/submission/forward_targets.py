"""GraphQL type of the targets that a stored message is forwarded to."""

import strawberry

from graph.types.errors import attribute_field
from models.queue.forward_target_kinds import ForwardTargetKind
from resolvers.submission.message_redirect import ForwardDestination


@strawberry.type(description="A target that a message is forwarded to.")
class ForwardTarget:
    number: int = attribute_field(
        "Number of the target, from 1. The number of an original target is its number among the "
        "original targets of the message."
    )
    type: ForwardTargetKind = attribute_field("Kind of the target.")
    value: str = attribute_field(
        "The address, or the URL of a relay or a web page. The URL of a relay has no password."
    )

    @classmethod
    def from_target(cls, target: ForwardDestination) -> "ForwardTarget":
        """Return the GraphQL object of a target."""
        return cls(number=target.number, type=target.kind, value=target.display_target)
