"""GraphQL type of the values of a message that IMAP defines."""

from collections.abc import Mapping
from typing import ClassVar

import strawberry

from graph.messages.mime_parts import READ_REFUSAL, require_stored_message_and_log_read
from graph.types.errors import attribute_field
from graph.types.fields import Info, field
from graph.types.object_views import DerivedField, View
from graph.types.scalars import BigInt, ByteSize
from mail.storage.message_flags import imap_flags_from_values
from resolvers.messages import computed_fields

FLAG_COLUMNS = ("seen", "answered", "flagged", "deleted", "draft", "keywords")


@strawberry.type(description="Values of a message that IMAP defines (RFC 9051).")
class MessageImap(View):
    uid: BigInt = attribute_field(
        "UID of the message in its mailbox (RFC 9051). A move gives the message a new one."
    )
    modseq: BigInt = attribute_field(
        "MODSEQ of the newest change of the message (RFC 7162). `ifUnchangedSince` takes it."
    )
    flags: list[str] = attribute_field(
        "All flags and keywords of the message in IMAP notation, such as `\\Seen`. At most 64 "
        "keywords."
    )
    deleted: bool = attribute_field(
        "True if the message has the flag \\Deleted. IMAP clients expunge such messages."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "flags": DerivedField(FLAG_COLUMNS, imap_flags_from_values),
    }

    @field(
        "Sequence number of the message in its mailbox (RFC 9051): its position by UID, counted "
        "from 1.",
        cost=10,
    )
    async def seq(self, info: Info) -> int:
        return await info.context.load(computed_fields.load_sequence_numbers, self.row.id)

    @field(
        "Size of the message in bytes if every line ended with CRLF: RFC822.SIZE in IMAP (RFC "
        "9051). "
        f"{READ_REFUSAL}",
        cost=20,
        can_fail=True,
    )
    async def size(self, info: Info) -> ByteSize:
        return ByteSize(
            await computed_fields.crlf_size(
                await require_stored_message_and_log_read(info, self.row)
            )
        )

    @field(
        f"Header of the message as the IMAP data item ENVELOPE (RFC 9051). {READ_REFUSAL}",
        cost=5,
        can_fail=True,
    )
    async def envelope(self, info: Info) -> str:
        return await computed_fields.imap_envelope(
            await require_stored_message_and_log_read(info, self.row)
        )

    @field(
        f"MIME structure of the message as the IMAP data item BODY (RFC 9051). {READ_REFUSAL}",
        cost=10,
        can_fail=True,
    )
    async def body(self, info: Info) -> str:
        return await computed_fields.imap_bodystructure(
            await require_stored_message_and_log_read(info, self.row), is_extended=False
        )

    @field(
        "MIME structure of the message as the IMAP data item BODYSTRUCTURE (RFC 9051). "
        f"{READ_REFUSAL}",
        cost=10,
        can_fail=True,
    )
    async def body_structure(self, info: Info) -> str:
        return await computed_fields.imap_bodystructure(
            await require_stored_message_and_log_read(info, self.row), is_extended=True
        )
