"""Mutation that forwards a stored message."""

import strawberry
from strawberry import UNSET

from graph.submission.forward_targets import ForwardTarget
from graph.submission.types import Submission
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Info
from graph.types.mutations import mutation
from graph.types.object_access import MANAGED
from graph.types.references import MessageRef, find_unchecked_message_id, value_or_none
from models.errors import NotFound
from models.users.roles import AdminPermission, Scope
from resolvers.submission import message_redirect


@strawberry.input(description="Input of messageRedirect.")
class MessageRedirectInput(Options):
    message: MessageRef = attribute_field(
        "Stored message to send again: of the signed-in user, in a shared mailbox with the right "
        "READ, or of a user for whom the caller can send. A deleted message is NOT_FOUND."
    )
    to: list[str] | None = attribute_field(
        "Addresses that the message is sent to: at least 1, by default at most 400 "
        "(LIMIT_REACHED). An address of the sending account is an error. Default: the targets in "
        "`Message.forwardTargets`, to which the message was forwarded when it was received. If "
        "there are none, nothing is sent.",
        default=UNSET,
    )
    original_target: int | None = attribute_field(
        "Number of the original target to send to, counted from 1, as in "
        "`Message.forwardTargets`. Not allowed with `to`. A number without a target sends "
        "nothing, and is no error; a number below 1 is an error. A target that is now an address "
        "of the account is skipped. Default: all original targets.",
        default=UNSET,
    )


@strawberry.type(description="Payload of messageRedirect.")
class MessageRedirectPayload(MutationPayload):
    submission: Submission | None = attribute_field(
        "Submission that sends the message. Null if there is no target, so that nothing is sent, "
        "or if the mutation failed.",
        default=None,
    )
    forward_targets: list[ForwardTarget] = attribute_field(
        "Targets that the message is sent to, each once.", default_factory=list
    )


@strawberry.type
class MessageRedirectMutation:
    @mutation(
        "Sends a stored message again, byte for byte, to its original forwarding targets or to "
        "other addresses. The envelope sender is the main address of the owner, or of the "
        "signed-in user for a message in a shared mailbox. The message gets the keyword "
        "$Forwarded, unless its mailbox is shared by another user. No copy is stored. CONFLICT "
        "for a draft, and for a message with 30 or more header fields Received (mail loop). For a "
        "message in a mailbox that another user shares, the original targets are "
        "FORBIDDEN_OPERATION. CONFLICT for the original targets if the stored password of a relay "
        "server (smtp:// target) is gone. CONFLICT for them, too, if the account encrypts "
        "forwards and the message is unencrypted. FORBIDDEN_OPERATION if the account is inactive "
        "or suspended, or the message is spam or has a virus. If the server scans the message for "
        "spam or viruses, no earlier mutation of an `@atomic` request can have changed anything "
        "(else FORBIDDEN_OPERATION). UNAVAILABLE if a scanner does not respond and its setting "
        "defers mail. LIMIT_REACHED for more than 400 addresses in `to` (by default). "
        "RATE_LIMITED at a sending limit of the user, the domain or the platform. RATE_LIMITED "
        "also if reading a large message exceeds the caller's rate limit. If an administrator "
        "gives addresses, they are in the security log of the owner, and the owner gets a message.",
        scope=Scope.SUBMIT,
        further_scope=Scope.MAIL_READ,
        access=MANAGED.with_permissions(AdminPermission.IMPERSONATE),
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
        result = await message_redirect.forward_as_owner_with_security_log(
            info.context, key, request
        )
        return MessageRedirectPayload(
            submission=Submission.from_row_or_none(result.submission),
            forward_targets=[ForwardTarget.from_target(target) for target in result.destinations],
        )
