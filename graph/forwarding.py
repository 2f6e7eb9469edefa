"""Handing a stored message on."""

import strawberry

from graph.errors import MutationPayload, Options, leaf
from graph.fields import Info
from graph.mutations import mutation
from graph.refs import MessageRef, message_of
from models.errors import NotFound
from models.roles import Scope
from resolvers import forwarding

MAIL = "mail"  # a type of targets


@strawberry.type(description="Where a message was forwarded.")
class ForwardTarget:
    seq: str = leaf("Number of the target, from 1.")
    type: str = leaf("mail: an address.")
    value: str = leaf("The address.")


@strawberry.input(description="Input of messageForward.")
class MessageForwardInput(Options):
    message: MessageRef = leaf("Which message.")
    addresses: list[str] = leaf("To whom; none of one's own.")


@strawberry.type(description="Answer of messageForward.")
class MessageForwardPayload(MutationPayload):
    queue_id: str | None = leaf("Id in the queue.", default=None)
    forwarded: list[ForwardTarget] = leaf("To whom it goes, each once.", default_factory=list)


@strawberry.type
class ForwardingMutation:
    @mutation(
        "Again, as it is, to others. The sender of the envelope is the main address of the "
        "account; the message gets the keyword $Forwarded.",
        scope=Scope.SUBMIT,
    )
    async def message_forward(
        self, info: Info, input: MessageForwardInput
    ) -> MessageForwardPayload:
        key = await message_of(info, input.message, path="message")
        if key is None:
            raise NotFound("", path=["message"])
        done = await forwarding.forward(info.context, key, input.addresses)
        return MessageForwardPayload(
            queue_id=done.submission.queue_id,
            forwarded=[
                ForwardTarget(seq=str(nth), type=MAIL, value=address)
                for nth, address in enumerate(done.recipients, 1)
            ],
        )
