"""The domains whose administrators see recipients in delivery traces."""

from mail.recipients.recipient_routes import AcceptedRecipient


def traced_domain_id_or_none(accepted: AcceptedRecipient) -> int | None:
    """Return the ID of the domain whose administrators see the recipient in traces."""
    if accepted.accounts:
        return accepted.accounts[0].recipient.domain_id
    return accepted.forwards[0].traced_domain_id if accepted.forwards else accepted.domain_id
