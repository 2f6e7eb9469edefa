"""Mutation that forwards a stored message."""

import strawberry
from strawberry import UNSET

from graph.submission.forward_targets import ForwardTarget
from graph.submission.types import Submission
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.references import MessageRef, find_unchecked_message_id, value_or_none
from models.errors import NotFound
from models.users.roles import Scope
from resolvers.submission import message_redirect


@strawberry.input(description="Input of messageRedirect.")
class MessageRedirectInput(Options):
    message: MessageRef = attribute_field("The stored message to send again.")
    to: list[str] | None = attribute_field(
        "Addresses to send the message to, none of them an address of the account. Default: the "
        "original targets.",
        default=UNSET,
    )
    original_target: int | None = attribute_field(
        "Number of the original target to send the message to, from 1, as in "
        "`Message.forwardTargets`. It excludes `to`. Default: all original targets.",
        default=UNSET,
    )


@strawberry.type(description="Result of messageRedirect.")
class MessageRedirectPayload(MutationPayload):
    submission: Submission | None = attribute_field(
        "The submission. Null if there is nobody to send the message to.", default=None
    )
    forward_targets: list[ForwardTarget] = attribute_field(
        "Targets that the message is sent to, each once.", default_factory=list
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
            value_or_none(input.to), value_or_none(input.original_target)
        )
        result = await message_redirect.forward_as_owner(info.context, key, request)
        return MessageRedirectPayload(
            submission=Submission.from_row_or_none(result.submission),
            forward_targets=[ForwardTarget.from_target(target) for target in result.destinations],
        )
