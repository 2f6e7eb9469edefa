"""GraphQL types of vacation replies and their preview."""

from collections.abc import Mapping
from datetime import datetime
from operator import attrgetter
from typing import Annotated, ClassVar

import strawberry
from strawberry import UNSET

from graph.types.errors import leaf
from graph.types.fields import Info, field
from graph.types.object_views import Made
from graph.types.references import MessageRef, message_of, plain
from graph.types.row_mapping import Shape, identified
from graph.types.scalars import Duration, EmailAddress
from mail.autoreply import Silence
from models.errors import NotFound
from resolvers.autoreply import autoreplies
from resolvers.autoreply.preview import Letter, Preview, preview
from resolvers.autoreply.validation import PLAIN

RULE = {name: Made(("rule",), attrgetter(name)) for name in PLAIN}
SENDER = strawberry.argument(description="Who writes; of a message, absent = who sent it.")
SUBJECT = strawberry.argument(description="Of what is answered; absent = that of the message.")
TO = strawberry.argument(
    description="Address of the account, or one that an address takes; absent = of the message, or "
    "main."
)
MESSAGE = strawberry.argument(description="A message that came: why is it answered, or not?")


@strawberry.type(description="What a sender would be answered.")
class AutoreplyPreview:
    silence: Silence | None = leaf("Why nothing would be sent, null = it would.")
    internal: bool = leaf(
        "The sender's domain is that of the account or address, or an alias of it."
    )
    from_: EmailAddress | None = leaf("From.", name="from")
    from_name: str | None = leaf("Name in From.")
    to: EmailAddress | None = leaf("To; null = to nobody.")
    subject: str = leaf("Subject.")
    text: str = leaf("Plain text, made of the HTML where there is none.")
    html: str = leaf("HTML, empty = none.")

    @classmethod
    def of(cls, found: Preview) -> "AutoreplyPreview":
        """Return the GraphQL object of a preview."""
        return cls(
            silence=found.silence,
            internal=found.internal,
            from_=EmailAddress(found.from_) if found.from_ else None,
            from_name=found.name,
            to=EmailAddress(found.to) if found.to else None,
            subject=found.subject,
            text=found.text,
            html=found.html,
        )


@strawberry.type(description="Vacation answer of a user, or answer of an address that forwards.")
class Autoreply(Shape):
    enabled: bool = leaf("Switch.")
    name: str | None = leaf("In From; null = that of the account or address.")
    subject: str = leaf('Empty = "Auto: Re:" and that of the original.')
    text: str = leaf("Plain text.")
    html: str = leaf("HTML.")
    internal_subject: str | None = leaf("To senders of the own domain; null = as to all.")
    internal_text: str | None = leaf(
        "To senders of the own domain; null with internalHtml = as to all."
    )
    internal_html: str | None = leaf("HTML to those senders; null with internalText = as to all.")
    starts_at: datetime | None = leaf("Null = at once.")
    ends_at: datetime | None = leaf("Null = no end.")
    addresses: list[EmailAddress] = leaf("Only mail to these is answered; empty = to any.")
    interval: Duration = leaf("One answer per sender in that time; default autoreply.interval.")
    active_now: bool = leaf("Enabled and within the time.")
    created_at: datetime | None = leaf("First set, null = never.")

    batch = staticmethod(autoreplies.by_ids)
    made: ClassVar[Mapping[str, Made]] = {"id": identified("Autoreply"), **RULE}

    @field("What would be answered to somebody, without sending it.", "id", cost=5)
    async def preview(
        self,
        info: Info,
        sender: Annotated[EmailAddress | None, SENDER] = UNSET,
        subject: Annotated[str | None, SUBJECT] = UNSET,
        to: Annotated[EmailAddress | None, TO] = UNSET,
        message: Annotated[MessageRef | None, MESSAGE] = UNSET,
    ) -> AutoreplyPreview:
        key = await message_of(info, message, path="message") if message else None
        if message and key is None:
            raise NotFound("", path=["message"])
        request = Letter(sender or None, plain(subject), to or None, key)
        return AutoreplyPreview.of(await preview(info.context, self.row, request))
