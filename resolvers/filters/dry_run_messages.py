"""The message that a dry run of filters or of a Sieve script examines."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from mail.mime import parse_structure
from mail.sieve import ParsedSieveMessage
from models.errors import InvalidInput, NotFound, require_within_limit
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.messages import content

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class StoredTestMessage:
    """ID of a stored message to test."""

    message_id: int


@dataclass(frozen=True, slots=True)
class RawTestMessage:
    """Text of a message to test, in the format of RFC 5322."""

    text: str


DryRunMessage = StoredTestMessage | RawTestMessage


async def load_and_examine_message(
    ctx: Context, message: DryRunMessage, examine: Callable[[ParsedSieveMessage], Result]
) -> Result:
    """Parse a message and return what `examine` returns for it, called in a thread.

    Raises NotFound if the viewer can't see the stored message, InvalidInput if the raw text has an
    unpaired surrogate, and LimitReached if it is too large.
    """
    if isinstance(message, StoredTestMessage):
        stored = await content.load_stored_message(ctx, message.message_id)
        if stored is None:
            raise NotFound(str(message.message_id), path=["message", "stored"])
        tree = stored.structure
        return await stored.run_on_source(
            lambda source: examine(ParsedSieveMessage(source, tree)), in_thread=True
        )
    path = ["message", "raw"]
    try:
        message_bytes = message.text.encode()
    except UnicodeEncodeError as half:
        raise InvalidInput(
            "The text must not contain unpaired surrogates.",
            constraint=ValidationConstraint.UNICODE,
            path=path,
        ) from half
    max_bytes = ctx.environment.options.message_max_size
    require_within_limit(
        len(message_bytes), max_bytes, f"The message has at most {max_bytes} bytes.", path=path
    )
    return await asyncio.to_thread(
        lambda: examine(ParsedSieveMessage(message_bytes, parse_structure(message_bytes)))
    )
