"""Mutation that forwards a stored message."""

import strawberry
from strawberry import UNSET

from graph.submission.delivery_status import ForwardTarget
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import MessageRef, find_unchecked_message_id
from models.errors import NotFound
from models.users.roles import Scope
from resolvers.submission import message_redirect


@strawberry.input(description="Input of messageRedirect.")
class MessageRedirectInput(Options):
    message: MessageRef = attribute_field("Which message.")
    target: int | None = attribute_field(
        "Number, from 1, of an original target: of those it was sent on to as it came.",
        default=UNSET,
    )
    addresses: list[str] | None = attribute_field(
        "Or to these; none of one's own. Absent both: to all original targets.", default=UNSET
    )


@strawberry.type(description="Answer of messageRedirect.")
class MessageRedirectPayload(MutationPayload):
    queue_id: str | None = attribute_field(
        "Id in the queue; null = it goes to nobody.", default=None
    )
    forwarded: list[ForwardTarget] = attribute_field(
        "To whom it goes, each once.", default_factory=list
    )


@strawberry.type
class MessageRedirectMutation:
    @mutation(
        "Sends a stored message again, unchanged, to its original targets or to other addresses. "
        "Does nothing if there is nobody to send it to. The envelope sender is the main address of "
        "the account. Sets the keyword $Forwarded on the message. Needs the scopes SUBMIT and "
        "MAIL_READ.",
        scope=Scope.SUBMIT,
    )
    async def message_redirect(
        self, info: Info, input: MessageRedirectInput
    ) -> MessageRedirectPayload:
        info.context.viewer.require_scope(Scope.MAIL_READ)
        key = await find_unchecked_message_id(info, input.message, path="message")
        if key is None:
            raise NotFound("", path=["message"])
        request = message_redirect.ForwardRequest(
            None if input.addresses is UNSET else input.addresses,
            None if input.target is UNSET else input.target,
        )
        result = await message_redirect.forward_as_owner(info.context, key, request)
        return MessageRedirectPayload(
            queue_id=result.submission.queue_id if result.submission else None,
            forwarded=[ForwardTarget.from_target(target) for target in result.destinations],
        )
