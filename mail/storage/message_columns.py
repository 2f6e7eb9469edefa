"""Columns of a stored message that its content determines."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from mail.mime import MessageFacts, ParsedAddress
from mail.storage.storable_message import StorableMessage
from mail.text.storable_text import make_storable


def content_and_reset_state_columns(message: StorableMessage) -> dict[str, Any]:
    """The values of the columns that depend only on the content of a message."""
    facts = message.facts
    senders = facts.from_[:1]
    sender = senders[0] if senders else None
    other = facts.sender[0] if facts.sender and facts.sender[:1] != senders else None
    columns = {
        "sha256": message.digest,
        "size": message.size,
        "date": facts.date,
        "subject": facts.subject,
        "from_name": sender and sender.name,
        "from_address": sender and sender.address,
        "sender": [other.name, other.address] if other else None,
        "reply_to": _name_address_pairs(facts.reply_to),
        "to": _name_address_pairs(facts.to),
        "cc": _name_address_pairs(facts.cc),
        "bcc": _name_address_pairs(facts.bcc),
        "message_id": facts.message_id,
        "in_reply_to": facts.in_reply_to,
        "references": list(facts.references),
        "mailing_list": _mailing_list(facts),
        "preview": facts.preview,
        "content_type": facts.content_type,
        "content_params": facts.content_params,
        "encrypted": facts.encrypted,
        "attachment_count": facts.attachment_count,
        "attachments": [asdict(attachment) for attachment in facts.attachments],
        "mime_structure": message.structure_json,
        "answered": False,
        "deleted": False,
        "keywords": [],
        "deleted_at": None,
        "deleted_from": None,
        "deleted_mailbox_id": None,
        "purge_at": None,
        "indexed": False,
    }
    return {name: make_storable(value) for name, value in columns.items()}


def _name_address_pairs(addresses: Sequence[ParsedAddress]) -> list[list[str | None]]:
    return [[address.name, address.address] for address in addresses]


def _mailing_list(facts: MessageFacts) -> dict[str, Any] | None:
    if not (facts.list_id or facts.list_unsubscribe):
        return None
    return {
        "id": facts.list_id,
        "unsubscribe": facts.list_unsubscribe,
        "url": facts.list_unsubscribe_url,
        "one_click": facts.one_click,
        "signers": facts.one_click_signers,
    }
