"""Add the table of sort keys, for lists of messages by date, sender, subject or size.

The migration has its own copies of the functions and triggers: later versions can change theirs.
"""

import logging
import re
from collections.abc import Mapping
from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy import Connection, String, column, insert, select, table

from models.store.columns import BIG_INTEGER, BYTEWISE_TEXT, UtcDateTime
from models.store.text_folding import fold_text

revision = "0112"
down_revision = "0111"

BATCH_SIZE = 1000  # rows of one statement
BATCHES_PER_LOG_ENTRY = 100
MAX_KEY_BYTES = 64  # of a folded text, in UTF-8
MAX_FOLDED_CHARACTERS = 1024  # of a text whose beginning is the key: folding can shorten it
SOURCE_TYPES = {  # of the columns of messages from which the sort keys are computed
    "id": BIG_INTEGER,
    "mailbox_id": BIG_INTEGER,
    "date": UtcDateTime(),
    "received_at": UtcDateTime(),
    "from_name": String(),
    "from_address": String(),
    "subject": String(),
    "size": BIG_INTEGER,
}
INDEXED_COLUMNS = {
    "message_sort_keys_by_date": "sent_at",
    "message_sort_keys_by_sender": "sender_key",
    "message_sort_keys_by_subject": "subject_key",
    "message_sort_keys_by_size": "size",
}

TRIGGER_COLUMNS = ("mailbox_id", "date", "received_at", "size")
HAS_CHANGED = " OR ".join(f"new.{name} IS DISTINCT FROM old.{name}" for name in TRIGGER_COLUMNS)
UPDATE_KEYS = (
    "UPDATE message_sort_keys SET mailbox_id = new.mailbox_id,"
    " sent_at = coalesce(new.date, new.received_at), size = new.size WHERE id = new.id"
)
DELETE_KEYS = "DELETE FROM message_sort_keys WHERE id = old.id"
CREATE_TRIGGERS = {
    "sqlite": (
        f"CREATE TRIGGER message_sort_keys_out AFTER DELETE ON messages BEGIN {DELETE_KEYS}; END",
        f"CREATE TRIGGER message_sort_keys_changed AFTER UPDATE OF {', '.join(TRIGGER_COLUMNS)}"
        f" ON messages WHEN {HAS_CHANGED} BEGIN {UPDATE_KEYS}; END",
    ),
    "postgresql": (
        "CREATE FUNCTION message_sort_keys_follow() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        f" IF TG_OP = 'DELETE' THEN {DELETE_KEYS}; ELSE {UPDATE_KEYS}; END IF;"
        " RETURN NULL; END $$",
        "CREATE TRIGGER message_sort_keys_out AFTER DELETE ON messages FOR EACH ROW"
        " EXECUTE FUNCTION message_sort_keys_follow()",
        f"CREATE TRIGGER message_sort_keys_changed AFTER UPDATE OF {', '.join(TRIGGER_COLUMNS)}"
        f" ON messages FOR EACH ROW WHEN ({HAS_CHANGED})"
        " EXECUTE FUNCTION message_sort_keys_follow()",
    ),
}

SUBJECT_PREFIXES = """
    re fw fwd aw wg antw antwort sv vs vb vl ref rif r i res enc tr rv rsp odp pd ynt ilt bls trs
    doorst ang atb yml fs hl vá továbbítás καθ απ σχετ πρθ отв на пер
    回复 转发 答复 回覆 轉寄 答覆 轉發 返信 転送 답장 회신 전달 تحويل رد השב הועבר
"""
ANY_PREFIX = "|".join(sorted(map(re.escape, SUBJECT_PREFIXES.split()), key=len, reverse=True))
PREFIX = re.compile(
    rf"\s*(?:(?:{ANY_PREFIX})\s?(?:\[\d{{1,4}}\]|\(\d{{1,4}}\)|\^?\d{{1,4}})?\s?[:\uff1a]"
    r"|\[[^\[\]]{1,80}\](?=\s*\S))",
    re.IGNORECASE,
)
FORWARD_MARK = "(fwd)"

log = logging.getLogger("merganser.migrations")  # Alembic names the module after its path


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":  # a running server of an older version
        connection.exec_driver_sql("LOCK TABLE messages IN SHARE ROW EXCLUSIVE MODE")
    keys_table = op.create_table(
        "message_sort_keys",
        sa.Column("id", BIG_INTEGER, autoincrement=False, nullable=False),
        sa.Column("mailbox_id", BIG_INTEGER, nullable=True),
        sa.Column("sent_at", UtcDateTime(), nullable=False),
        sa.Column("sender_key", BYTEWISE_TEXT, nullable=False),
        sa.Column("subject_key", BYTEWISE_TEXT, nullable=False),
        sa.Column("size", BIG_INTEGER, nullable=False),
        sa.PrimaryKeyConstraint("id"),
    )
    _insert_sort_keys(connection, keys_table)
    for name, key in INDEXED_COLUMNS.items():  # after the rows, which is faster
        op.create_index(name, "message_sort_keys", ["mailbox_id", key, "id"])
    for statement in CREATE_TRIGGERS[connection.dialect.name]:
        connection.exec_driver_sql(statement)


def _insert_sort_keys(connection: Connection, keys_table: sa.Table) -> None:
    """Insert the sort keys of all messages, in batches of rows. Log how far it is."""
    messages = table("messages", *(column(name, kind) for name, kind in SOURCE_TYPES.items()))
    batch = select(messages).order_by(messages.c.id).limit(BATCH_SIZE)
    last_id, batch_count = -1, 0
    while rows := connection.execute(batch.where(messages.c.id > last_id)).all():
        last_id = rows[-1].id
        connection.execute(insert(keys_table), [_sort_key_columns(row._asdict()) for row in rows])
        batch_count += 1
        if batch_count % BATCHES_PER_LOG_ENTRY == 0:
            log.info("Sort keys of messages inserted", extra={"count": batch_count * BATCH_SIZE})


def _sort_key_columns(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row of the sort keys of a message, from columns of its row."""
    sender_name = (message["from_name"] or "").strip()
    return {
        "id": message["id"],
        "mailbox_id": message["mailbox_id"],
        "sent_at": message["date"] or message["received_at"],
        "sender_key": _folded_key(sender_name or message["from_address"] or ""),
        "subject_key": _folded_key(_base_subject(message["subject"])),
        "size": message["size"],
    }


def _folded_key(text: str) -> str:
    """Return the beginning of a text, folded, of at most 64 bytes in UTF-8."""
    folded = fold_text(text[:MAX_FOLDED_CHARACTERS].strip())
    return folded.encode()[:MAX_KEY_BYTES].decode(errors="ignore")


def _base_subject(subject: str) -> str:
    """Return a subject without prefixes of replies, forwards and lists, case folded."""
    at, end = 0, len(subject)
    while match := PREFIX.match(subject, at):
        at = match.end()
    while subject[max(at, end - len(FORWARD_MARK)) : end].lower() == FORWARD_MARK:
        end -= len(FORWARD_MARK)
        while end > at and subject[end - 1] == " ":
            end -= 1
    return subject[at:end].strip().casefold()


def downgrade() -> None:
    raise NotImplementedError("no older version: restore a backup instead")
