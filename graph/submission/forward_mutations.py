"""Mutation that forwards a stored message."""

import strawberry
from strawberry import UNSET

from graph.submission.delivery_status import ForwardTarget
from graph.types.errors import MutationPayload, Options, leaf
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import MessageRef, message_of
from models.errors import NotFound
from models.users.roles import Scope
from resolvers.submission import message_forward


@strawberry.input(description="Input of messageForward.")
class MessageForwardInput(Options):
    message: MessageRef = leaf("Which message.")
    target: int | None = leaf(
        "Number, from 1, of an original target: of those it was sent on to as it came.",
        default=UNSET,
    )
    addresses: list[str] | None = leaf(
        "Or to these; none of one's own. Absent both: to all original targets.", default=UNSET
    )


@strawberry.type(description="Answer of messageForward.")
class MessageForwardPayload(MutationPayload):
    queue_id: str | None = leaf("Id in the queue; null = it goes to nobody.", default=None)
    forwarded: list[ForwardTarget] = leaf("To whom it goes, each once.", default_factory=list)


@strawberry.type
class ForwardingMutation:
    @mutation(
        "Sends a stored message again, unchanged, to its original targets or to other addresses. "
        "Does nothing if there is nobody to send it to. The envelope sender is the main address of "
        "the account. Sets the keyword $Forwarded on the message. Needs the scopes SUBMIT and "
        "MAIL_READ.",
        scope=Scope.SUBMIT,
    )
    async def message_forward(
        self, info: Info, input: MessageForwardInput
    ) -> MessageForwardPayload:
        info.context.viewer.require_scope(Scope.MAIL_READ)
        key = await message_of(info, input.message, path="message")
        if key is None:
            raise NotFound("", path=["message"])
        request = message_forward.Wanted(
            None if input.addresses is UNSET else input.addresses,
            None if input.target is UNSET else input.target,
        )
        result = await message_forward.forward_any(info.context, key, request)
        return MessageForwardPayload(
            queue_id=result.submission.queue_id if result.submission else None,
            forwarded=[ForwardTarget.of(target) for target in result.targets],
        )
