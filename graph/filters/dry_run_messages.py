"""The message argument of `filterTest` and `sieveTest`."""

import strawberry

from graph.types.errors import attribute_field
from graph.types.fields import Info
from graph.types.references import MessageRef, find_unchecked_message_id
from models.errors import NotFound
from resolvers.filters.dry_run_messages import DryRunMessage, RawTestMessage, StoredTestMessage


@strawberry.input(
    one_of=True,
    description="Message to test, stored or as text. Exactly one field is required.",
)
class MessageSourceInput:
    stored: strawberry.Maybe[MessageRef] = attribute_field(
        "Stored message to test. The caller must be able to read it."
    )
    raw: strawberry.Maybe[str] = attribute_field(
        "Message in the format of RFC 5322, with its header. For a Sieve script, its envelope "
        "sender and recipient are empty."
    )


async def resolve_message_source_or_raise(info: Info, source: MessageSourceInput) -> DryRunMessage:
    """Return the message to test. Raises NotFound if the reference names no message."""
    if source.raw:
        return RawTestMessage(source.raw.value)
    path = ["message", "stored"]
    ref = source.stored.value if source.stored else None
    key = await find_unchecked_message_id(info, ref, path=path) if ref else None
    if key is None:
        raise NotFound("", path=path)
    return StoredTestMessage(key)
