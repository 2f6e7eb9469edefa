"""GraphQL types of vacation replies and their preview."""

from collections.abc import Mapping
from datetime import datetime
from operator import attrgetter
from typing import Annotated, ClassVar

import strawberry
from strawberry import UNSET

from graph.types.errors import attribute_field
from graph.types.fields import Info, field
from graph.types.object_views import DerivedField
from graph.types.references import MessageRef, find_unchecked_message_id, value_or_none
from graph.types.row_mapping import NodeView, global_id_field
from graph.types.scalars import Duration, EmailAddress
from mail.autoreply import NoReplyReason
from models.errors import NotFound
from resolvers.autoreply import autoreplies
from resolvers.autoreply.preview import (
    AutoreplyPreviewInput,
    AutoreplyPreviewResult,
    preview_autoreply,
)
from resolvers.autoreply.validation import RULE_COLUMNS_WITHOUT_ADDRESSES

RULE_FIELDS = {
    name: DerivedField(("rule",), attrgetter(name)) for name in RULE_COLUMNS_WITHOUT_ADDRESSES
}
TEXT_FIELDS = {
    name: DerivedField(("rule",), lambda rule, name=name: getattr(rule, name) or None)
    for name in ("subject", "text", "html")
}
SENDER_ARGUMENT = strawberry.argument(
    description=(
        "Sender to reply to. Default: the envelope sender of `message`. Without `message` and "
        "`sender`, the field is an error."
    )
)
SUBJECT_ARGUMENT = strawberry.argument(
    description="Original subject. Default: the subject of `message`, or empty without `message`."
)
TO_ARGUMENT = strawberry.argument(
    description=(
        "Recipient of the original message: an address of the user, or one that the forwarding "
        "address receives mail for. Another one is NOT_FOUND. Default: the recipient of `message`, "
        "else the main address or the forwarding address."
    )
)
MESSAGE_ARGUMENT = strawberry.argument(
    description=(
        "Stored message to preview the reply for, which requires the scope MAIL_READ. It must "
        "belong to the user of the autoreply. The caller must be that user, or read it in a shared "
        "mailbox. Another message is NOT_FOUND, also for an administrator, and any message for the "
        "autoreply of a forwarding address. Default: no message."
    )
)


@strawberry.type(description="Preview of an autoreply to one sender.")
class AutoreplyPreview:
    suppressed_because: NoReplyReason | None = attribute_field(
        "Reason why no reply would be sent. Null: a reply would be sent."
    )
    internal: bool = attribute_field(
        "True if the sender's address is in the domain of the autoreply's user or address, or in "
        "an active alias domain of that domain."
    )
    from_: EmailAddress | None = attribute_field(
        "Address in the header field From of the automatic reply: the recipient address if the "
        "user can send as it, else the main address. Null: there is no such address, or no sender "
        "to reply to.",
        name="from",
    )
    from_name: str | None = attribute_field(
        "Display name in the header field From of the automatic reply. Null: there is no name, or "
        "the original message has no sender to reply to."
    )
    to: EmailAddress | None = attribute_field(
        "Address in the header field To of the automatic reply. Null: there is no sender to reply "
        "to."
    )
    subject: str = attribute_field(
        "Subject of the automatic reply. Empty if there is no sender to reply to, no From address "
        "or no text for the sender."
    )
    text: str | None = attribute_field(
        "Plain text of the automatic reply. It is made from the HTML if only that is set. Null: "
        "there is no text for the sender, no From address, or no sender to reply to."
    )
    html: str | None = attribute_field(
        "HTML of the automatic reply. Null: the reply has only plain text, or there is no reply "
        "text, no From address, or no sender to reply to."
    )

    @classmethod
    def from_preview(cls, reply_preview: AutoreplyPreviewResult) -> "AutoreplyPreview":
        """Return the GraphQL object of a preview."""
        return cls(
            suppressed_because=reply_preview.no_reply_reason,
            internal=reply_preview.is_internal,
            from_=EmailAddress(reply_preview.from_) if reply_preview.from_ else None,
            from_name=reply_preview.name,
            to=EmailAddress(reply_preview.to) if reply_preview.to else None,
            subject=reply_preview.subject,
            text=reply_preview.text or None,
            html=reply_preview.html or None,
        )


@strawberry.type(
    description=(
        "Automatic reply (vacation or out-of-office reply) of a user, or of a forwarding address."
    )
)
class Autoreply(NodeView):
    enabled: bool = attribute_field("True if the autoreply is turned on.")
    name: str | None = attribute_field(
        "Display name in the header field From of the reply. Null: the name of the user or address."
    )
    subject: str | None = attribute_field(
        "Subject of the reply. Null: `Auto: Re:` and the original subject."
    )
    text: str | None = attribute_field(
        "Plain text of the reply. Null: it is made from `html`, if that is not null."
    )
    html: str | None = attribute_field(
        "Body of the reply as HTML. Null: the reply has no HTML body."
    )
    internal_subject: str | None = attribute_field(
        "Subject for senders of the same domain or of its active alias domains. Null: `subject`."
    )
    internal_text: str | None = attribute_field(
        "Plain text for senders of the same domain or of its active alias domains. If "
        "`internalText` and `internalHtml` are both null, these senders get `text` and `html`."
    )
    internal_html: str | None = attribute_field(
        "HTML for senders of the same domain or of its active alias domains. If `internalText` and "
        "`internalHtml` are both null, these senders get `text` and `html`."
    )
    starts_at: datetime | None = attribute_field(
        "Start of the period of replies. Null: replies start at once."
    )
    ends_at: datetime | None = attribute_field("End of the period of replies. Null: no end.")
    addresses: list[EmailAddress] = attribute_field(
        "Addresses to which mail is answered, at most 50. Empty: mail to any address is answered. "
        "If an address is deleted, it is removed from the list. The deletion of the last one turns "
        "the autoreply off."
    )
    interval: Duration = attribute_field(
        "Minimum time between two replies to one sender. If none was set: the setting "
        "`autoreply.interval`, P1D by default."
    )
    active_now: bool = attribute_field(
        "True if the autoreply is turned on and the current time is in its period, also if the "
        "account is suspended."
    )
    created_at: datetime | None = attribute_field(
        "Time when the autoreply was created. Null: the user or address has no autoreply."
    )

    load_batch = staticmethod(autoreplies.load_visible_autoreplies_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("Autoreply"),
        **RULE_FIELDS,
        **TEXT_FIELDS,
    }

    @field(
        "Preview of the reply to one sender, also if the autoreply is off. Nothing is sent, and "
        "the sender is not remembered.",
        "id",
        cost=5,
    )
    async def preview(
        self,
        info: Info,
        sender: Annotated[EmailAddress | None, SENDER_ARGUMENT] = UNSET,
        subject: Annotated[str | None, SUBJECT_ARGUMENT] = UNSET,
        to: Annotated[EmailAddress | None, TO_ARGUMENT] = UNSET,
        message: Annotated[MessageRef | None, MESSAGE_ARGUMENT] = UNSET,
    ) -> AutoreplyPreview:
        key = await find_unchecked_message_id(info, message, path="message") if message else None
        if message and key is None:
            raise NotFound("", path=["message"])
        request = AutoreplyPreviewInput(sender or None, value_or_none(subject), to or None, key)
        return AutoreplyPreview.from_preview(
            await preview_autoreply(info.context, self.row, request)
        )
