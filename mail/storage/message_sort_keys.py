"""Rows of the table of sort keys: keys are case-folded, and cut to 64 bytes."""

from collections.abc import Mapping
from typing import Any

from sqlalchemy import UpdateBase, insert

from mail.mime import base_subject
from models.messages.sort_keys import MAX_KEY_BYTES, MessageSortKey
from models.store.columns import insert_with_conflict
from models.store.prepared_statements import PreparedStatement, prepare_cached
from models.store.text_folding import fold_text

MAX_FOLDED_CHARACTERS = 1024  # of a text whose beginning is the key: folding can shorten it
# Columns of messages from which the row of the sort keys is computed.
SOURCE_COLUMNS = frozenset(
    {"id", "mailbox_id", "date", "received_at", "from_name", "from_address", "subject", "size"}
)
UPDATED_COLUMNS = ("mailbox_id", "sent_at", "sender_key", "subject_key", "size")
INSERT_SORT_KEYS = PreparedStatement(insert(MessageSortKey).inline())


@prepare_cached
def upsert_sort_keys(dialect: str) -> UpdateBase:
    """The statement that inserts a row of sort keys, or replaces the stored one."""
    new = insert_with_conflict(dialect, MessageSortKey)
    values = {name: new.excluded[name] for name in UPDATED_COLUMNS}
    return new.on_conflict_do_update(index_elements=["id"], set_=values).inline()


def sort_key_columns(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of the sort keys of a message, from SOURCE_COLUMNS of its row.

    Without a valid header field Date, the time of arrival takes its place (RFC 5256, section 2.2).
    The sender is the name in the header field From or, if that is empty, the address (RFC 8621,
    section 4.4.2).
    """
    sender_name = (message["from_name"] or "").strip()
    return {
        "id": message["id"],
        "mailbox_id": message["mailbox_id"],
        "sent_at": message["date"] or message["received_at"],
        "sender_key": folded_key(sender_name or message["from_address"] or ""),
        "subject_key": folded_key(base_subject(message["subject"])),
        "size": message["size"],
    }


def folded_key(text: str) -> str:
    """Return the beginning of a text, folded as searches fold it, of at most 64 bytes in UTF-8."""
    folded = fold_text(text[:MAX_FOLDED_CHARACTERS].strip())
    return folded.encode()[:MAX_KEY_BYTES].decode(errors="ignore")
