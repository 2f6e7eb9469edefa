"""GraphQL types of envelopes and mailing lists."""

from typing import TYPE_CHECKING, Any

import strawberry

from graph.messages.mime_parts import MailAddress
from graph.types.errors import attribute_field
from graph.types.object_views import (
    NestedViewField,
    return_unchanged,
)
from graph.types.scalars import URL
from mail.addresses.address_syntax import normalized_address
from mail.mime.authentication_results import has_valid_signature
from mail.mime.list_unsubscribe import is_https

if TYPE_CHECKING:
    pass


@strawberry.type(description="Recipient in an SMTP envelope (RFC 5321).")
class EnvelopeRecipient:
    value: str = attribute_field("Address as the SMTP client gave it.")
    formatted: str = attribute_field(
        "Address in lower case, without its subaddress (`+label`) and without the dots of the "
        "local part."
    )

    @classmethod
    def from_address(cls, address: str) -> "EnvelopeRecipient":
        """Return the recipient of an envelope."""
        return cls(value=address, formatted="@".join(normalized_address(address)))


@strawberry.type(
    description=(
        "Envelope of the SMTP transaction in which a message was received, or that it was "
        "sent with (RFC 5321)."
    )
)
class Envelope:
    from_: str | None = attribute_field(
        "Address of the SMTP command MAIL FROM. Empty for the null sender.", name="from"
    )
    recipients: list[EnvelopeRecipient] = attribute_field(
        "Addresses of the SMTP commands RCPT TO: of a received message only the address that it "
        "was stored for, of a sent message all recipients. By default at most 400."
    )


@strawberry.type(description="Mailing list that a message came from.")
class MailingList:
    list_id: str | None = attribute_field(
        "Identifier of the list, from the header field List-ID (RFC 2919), without angle "
        "brackets. Null if the message "
        "has no such field."
    )
    unsubscribe: str | None = attribute_field(
        "Value of the header field List-Unsubscribe (RFC 2369). Null if the message has no such "
        "field."
    )
    unsubscribe_url: URL | None = attribute_field(
        "First http or https URL in the header field List-Unsubscribe (RFC 2369); the first https "
        "URL if List-Unsubscribe-Post requests one-click unsubscription. Null if there is none."
    )
    unsubscribe_one_click: bool = attribute_field(
        "True if a POST request to `unsubscribeUrl` ends the subscription (RFC 8058): it is an "
        "https URL, and a valid DKIM signature covers both header fields."
    )


def addresses_field(column: str) -> NestedViewField:
    """Return a field that shows a column of name and address pairs."""
    return NestedViewField((column,), return_unchanged, MailAddress, is_list=True)


def name_and_address(name: str | None, address: str | None) -> tuple[str | None, str | None] | None:
    """Return the pair of name and address; None if both are empty."""
    return (name, address) if name or address else None


def mailing_list_from_json_or_none(
    stored_list: dict[str, Any] | None, stored_results: dict[str, Any] | None
) -> MailingList | None:
    """Return the stored mailing list fields; None if the message has none.

    `stored_results` are those of the authentication of the sender. Older messages have no list of
    signers; then any valid DKIM signature counts.
    """
    if not stored_list:
        return None
    url, results_text = stored_list["url"], (stored_results or {}).get("results") or ""
    return MailingList(
        list_id=stored_list["id"],
        unsubscribe=stored_list["unsubscribe"],
        unsubscribe_url=url,
        unsubscribe_one_click=bool(stored_list["one_click"] and url)
        and is_https(url)
        and has_valid_signature(results_text, stored_list.get("signers")),
    )


def envelope_from_columns_or_none(sender: str | None, recipients: list[str]) -> Envelope | None:
    """Return the stored envelope; None if there is none."""
    if sender is None:
        return None
    return Envelope(
        from_=sender,
        recipients=[EnvelopeRecipient.from_address(address) for address in recipients],
    )
