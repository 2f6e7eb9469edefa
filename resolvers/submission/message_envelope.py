"""The SMTP envelope of a message: the requested one, or that of its header."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from mail.compose import draft_validation
from mail.compose.submission_repair import RepairedMessage, find_ambiguous_recipient
from models.errors import InvalidInput, require_within_limit
from models.store.columns import ColumnRow
from models.validation_constraints import ValidationConstraint
from resolvers.context import Context
from resolvers.submission.sender_authorization import require_permitted_sender

TO_PATH = ("to",)
ENVELOPE_FROM_PATH = ("envelope", "from")
ENVELOPE_TO_PATH = ("envelope", "to")


@dataclass(frozen=True, slots=True)
class EnvelopeOverride:
    """Sender and recipients of the envelope that replace those of the header."""

    sender: str | None = None
    recipients: Sequence[str] | None = None


ENVELOPE_OF_HEADER = EnvelopeOverride()


@dataclass(frozen=True, slots=True)
class LocatedAddress:
    """An address, with the path of its input field and its index there for errors."""

    address: str
    input_path: Sequence[str]
    index: int | None = None


class SenderAndRecipients(NamedTuple):
    """The envelope of a message: each recipient once."""

    sender: str
    recipients: list[str]


async def require_valid_envelope(
    ctx: Context,
    account: ColumnRow,
    override: EnvelopeOverride,
    default_envelope: tuple[str, Sequence[LocatedAddress]],
    recipients_path: Sequence[str] = TO_PATH,
) -> SenderAndRecipients:
    """Return the requested envelope, or else the `default_envelope` one, each recipient once.

    `recipients_path` is the path of errors about all recipients of the default envelope. Raises
    Forbidden if the account may not use the sender, and InvalidInput if there is no recipient, too
    many, or one is no address.
    """
    sender, located_addresses = default_envelope
    if override.sender is not None:
        sender = _validated_address(LocatedAddress(override.sender, ENVELOPE_FROM_PATH))
        await require_permitted_sender(ctx, account, sender, ENVELOPE_FROM_PATH)
    if override.recipients is not None:
        recipients_path = ENVELOPE_TO_PATH
        located_addresses = [
            LocatedAddress(address, ENVELOPE_TO_PATH, index)
            for index, address in enumerate(override.recipients)
        ]
    recipients: dict[str, str] = {}
    for located in located_addresses:
        address = _validated_address(located)
        recipients.setdefault(address.casefold(), address)
    max_recipients = ctx.environment.options.submission_max_recipients
    require_within_limit(
        len(recipients),
        max_recipients,
        f"A message has at most {max_recipients} recipients.",
        path=recipients_path,
    )
    if not recipients:
        raise InvalidInput(
            "The message must have at least one recipient.",
            constraint=ValidationConstraint.REQUIRED,
            path=recipients_path,
        )
    return SenderAndRecipients(sender, list(recipients.values()))


def _validated_address(located: LocatedAddress) -> str:
    """Return the address unchanged. Raises InvalidInput if it is no address."""
    try:
        return draft_validation.normalize_and_validate_address_with_index(
            located.address, "", located.index
        )
    except InvalidInput as error:
        raise error.copy_with_path(located.input_path) from error


def header_recipients(repaired: RepairedMessage, field_name: str) -> list[LocatedAddress]:
    """Return the recipients that the header of a whole message names.

    Raises InvalidInput, with the path `field_name` of the message, if an entry of an address field
    is no address.
    """
    if broken_line := find_ambiguous_recipient(repaired.raw):
        raise InvalidInput(
            f"Not an email address: {broken_line}",
            constraint=ValidationConstraint.PATTERN,
            path=[field_name],
        )
    facts = repaired.facts
    header_addresses = [*facts.to, *facts.cc, *facts.bcc]
    for person in header_addresses:
        if not person.address and _means_an_address(person.name or ""):
            text = f"Not an email address: {(person.name or '')[:200]}"
            raise InvalidInput(text, constraint=ValidationConstraint.PATTERN, path=[field_name])
    return [
        LocatedAddress(person.address, [field_name])
        for person in header_addresses
        if person.address
    ]


def _means_an_address(text: str) -> bool:
    """True if an entry of an address field without an address was written as one.

    Other entries, such as "undisclosed recipients", are only a name.
    """
    return "@" in text or "<" in text or " " not in text
