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
SENDER_ARGUMENT = strawberry.argument(description="Who writes; of a message, absent = who sent it.")
SUBJECT_ARGUMENT = strawberry.argument(
    description="Of what is answered; absent = that of the message."
)
TO_ARGUMENT = strawberry.argument(
    description="Address of the account, or one that an address takes; absent = of the message, or "
    "main."
)
MESSAGE_ARGUMENT = strawberry.argument(
    description="A message that came: why is it answered, or not?"
)


@strawberry.type(description="What a sender would be answered.")
class AutoreplyPreview:
    suppressed_because: NoReplyReason | None = attribute_field(
        "Why nothing would be sent, null = it would."
    )
    internal: bool = attribute_field(
        "The sender's domain is that of the account or address, or an alias of it."
    )
    from_: EmailAddress | None = attribute_field("From.", name="from")
    from_name: str | None = attribute_field("Name in From.")
    to: EmailAddress | None = attribute_field("To; null = to nobody.")
    subject: str = attribute_field("Subject.")
    text: str = attribute_field("Plain text, made of the HTML where there is none.")
    html: str = attribute_field("HTML, empty = none.")

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
            text=reply_preview.text,
            html=reply_preview.html,
        )


@strawberry.type(description="Vacation answer of a user, or answer of an address that forwards.")
class Autoreply(NodeView):
    enabled: bool = attribute_field("Switch.")
    name: str | None = attribute_field("In From; null = that of the account or address.")
    subject: str = attribute_field('Empty = "Auto: Re:" and that of the original.')
    text: str = attribute_field("Plain text.")
    html: str = attribute_field("HTML.")
    internal_subject: str | None = attribute_field(
        "To senders of the own domain; null = as to all."
    )
    internal_text: str | None = attribute_field(
        "To senders of the own domain; null with internalHtml = as to all."
    )
    internal_html: str | None = attribute_field(
        "HTML to those senders; null with internalText = as to all."
    )
    starts_at: datetime | None = attribute_field("Null = at once.")
    ends_at: datetime | None = attribute_field("Null = no end.")
    addresses: list[EmailAddress] = attribute_field(
        "Only mail to these is answered; empty = to any."
    )
    interval: Duration = attribute_field(
        "One answer per sender in that time; default autoreply.interval."
    )
    active_now: bool = attribute_field("Enabled and within the time.")
    created_at: datetime | None = attribute_field("First set, null = never.")

    load_batch = staticmethod(autoreplies.load_autoreplies_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("Autoreply"),
        **RULE_FIELDS,
    }

    @field("What would be answered to somebody, without sending it.", "id", cost=5)
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
