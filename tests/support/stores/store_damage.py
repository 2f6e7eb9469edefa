"""Kinds of damage to a database, as SQL. Tests fill in the names in braces."""

from dataclasses import dataclass

from models.runtime.environment import Environment


@dataclass(frozen=True)
class StoreDamage:
    """A statement, the checks that fail after it, and those that still fail after a repair.

    On PostgreSQL the statement runs without triggers: then other checks fail too.
    """

    name: str
    sql: str
    failed_checks: str
    unrepaired_checks: str = ""
    failed_checks_without_triggers: str = ""


UPDATE_INBOX = "UPDATE mailboxes SET {} WHERE id = {{ada.inbox_id}}"
UPDATE_FIRST_MESSAGE = "UPDATE messages SET {} WHERE id = {{messages[0]}}"
UPDATE_SUBMISSION = "UPDATE submissions SET {} WHERE id = {{submission}}"
COUNTER_CHECKS = "counters.message_count counters.unseen_count counters.size"
USAGE_CHECKS = "quota.used quota.message_count"
STORE_DAMAGES = [
    StoreDamage(
        "message_count",
        UPDATE_INBOX.format("message_count = message_count + 1"),
        "counters.message_count",
    ),
    StoreDamage("unseen_count", UPDATE_INBOX.format("unseen_count = 0"), "counters.unseen_count"),
    StoreDamage("size", UPDATE_INBOX.format("size = -5"), "counters.size"),
    StoreDamage("a read one", UPDATE_FIRST_MESSAGE.format("seen = true"), "counters.unseen_count"),
    StoreDamage("uid_next", UPDATE_INBOX.format("uid_next = 4"), "counters.uid_next"),
    StoreDamage("folder behind", UPDATE_INBOX.format("modseq = 1"), "counters.modseq"),
    StoreDamage("folder ahead", UPDATE_INBOX.format("modseq = 900"), "counters.modseq"),
    StoreDamage(
        "another's folder",
        "UPDATE messages SET mailbox_id = {bob.notes_id} WHERE id = {messages[0]}",
        f"{COUNTER_CHECKS} counters.uid_next counters.modseq counters.owner",
        "counters.owner",
        failed_checks_without_triggers="orders.sort_keys",
    ),
    StoreDamage(
        "half archived",
        UPDATE_FIRST_MESSAGE.format("deleted_at = '2030-01-01 00:00:00'"),
        f"{USAGE_CHECKS} counters.place",
        "counters.place",
    ),
    StoreDamage("used", "UPDATE users SET used = used + 1 WHERE id = {ada.user_id}", "quota.used"),
    StoreDamage(
        "message_count",
        "UPDATE users SET message_count = 0 WHERE id = {ada.user_id}",
        "quota.message_count",
    ),
    StoreDamage(
        "no inbox",
        UPDATE_INBOX.format("special_use = NULL"),
        "quota.inbox",
        "quota.inbox",
    ),
    StoreDamage("domain's users", "UPDATE domains SET user_count = 7", "quota.user_count"),
    StoreDamage(
        "domain's addresses", "UPDATE domains SET address_count = 7", "quota.address_count"
    ),
    StoreDamage(
        "domain's quota", "UPDATE domains SET quota_allocated = 7", "quota.quota_allocated"
    ),
    StoreDamage(
        "no stream of an account",
        "DELETE FROM streams WHERE id = {bob.user_id}",
        "quota.stream",
        "quota.stream",
    ),
    StoreDamage(
        "no stream of a domain",
        "DELETE FROM streams WHERE id = {ada.domain_id}",
        "quota.stream",
        "quota.stream",
    ),
    StoreDamage(
        "a gap",
        "DELETE FROM changes WHERE stream_id = {ada.user_id} AND last = 2",
        "journal.gap journal.change",
        "journal.gap journal.change",
    ),
    StoreDamage(
        "an id too many",
        "UPDATE changes SET ids = '[1, 2]' WHERE stream_id = {ada.user_id} AND last = 1",
        "journal.gap journal.events journal.change",
        "journal.gap journal.events journal.change",
    ),
    StoreDamage(
        "a lost end",
        "DELETE FROM changes WHERE stream_id = {ada.user_id} AND last = 4",
        "journal.last journal.change",
        "journal.last journal.change",
    ),
    StoreDamage(
        "a lost beginning",
        "UPDATE streams SET pruned_position = 1 WHERE id = {ada.user_id}",
        "journal.gap",
        "journal.gap",
    ),
    StoreDamage(
        "a message vanished",
        "DELETE FROM messages WHERE id = {messages[2]}",
        f"{COUNTER_CHECKS} {USAGE_CHECKS} journal.events threads.messages",
        "journal.events",
        failed_checks_without_triggers="orders.message",
    ),
    StoreDamage(
        "said to be deleted",
        "UPDATE changes SET type = 'MESSAGE_PURGED' WHERE stream_id = {ada.user_id} AND last = 1",
        "journal.events",
        "journal.events",
    ),
    StoreDamage(
        "another's number",
        UPDATE_FIRST_MESSAGE.format("modseq = 2"),
        "journal.change",
        "journal.change",
    ),
    StoreDamage(
        "a number to come",
        UPDATE_FIRST_MESSAGE.format("modseq = 900"),
        "journal.modseq counters.modseq",
        "journal.modseq",
    ),
    StoreDamage(
        "another's thread",
        "UPDATE messages SET thread_id = {bobs_thread} WHERE id = {messages[2]}",
        "threads.thread_owner threads.messages",
        "threads.thread_owner",
    ),
    StoreDamage(
        "a lost thread",
        "DELETE FROM threads WHERE id = {thread}",
        "threads.thread_owner threads.refs_astray",
        "threads.thread_owner",
    ),
    StoreDamage(
        "an empty thread",
        "INSERT INTO threads (id, user_id, subject, created_at, muted)"
        " VALUES (5, {ada.user_id}, '', '2030-01-01 00:00:00', false)",
        "threads.messages",
    ),
    StoreDamage(
        "a reference astray",
        "UPDATE thread_keys SET thread_id = {bobs_thread} WHERE user_id = {ada.user_id}",
        "threads.refs_astray",
    ),
    StoreDamage(
        "not in the index", UPDATE_FIRST_MESSAGE.format("indexed = true"), "search.indexed"
    ),
    StoreDamage("sent too soon", UPDATE_SUBMISSION.format("state = 'SENT'"), "queue.state"),
    StoreDamage(
        "never tried", "UPDATE queue_entries SET next_at = NULL", *["queue.next_attempt"] * 2
    ),
    StoreDamage("no recipients", "DELETE FROM queue_entries", *["queue.deliveries"] * 2),
    StoreDamage(
        "the root unreferenced",
        "DELETE FROM message_blobs WHERE message_id = {messages[0]}",
        *["blobs.root_reference"] * 2,
    ),
    StoreDamage(
        "a piece unreferenced",
        "DELETE FROM message_blobs WHERE message_id = {messages[2]} AND blob_id = {piece}",
        "blobs.piece_references",
    ),
    StoreDamage(
        "a piece of sent mail unreferenced",
        "DELETE FROM submission_blobs WHERE blob_id = {piece}",
        "blobs.piece_references",
    ),
    StoreDamage(
        "a root lost",
        "DELETE FROM blobs WHERE id ="
        " (SELECT blob_id FROM messages WHERE messages.id = {messages[0]})",
        *["blobs.root blobs.lost_references"] * 2,
    ),
    StoreDamage(
        "a piece lost",
        "DELETE FROM blobs WHERE id = {piece}",
        *["blobs.lost_references blobs.whole"] * 2,
    ),
    StoreDamage(
        "another digest of a blob",
        "UPDATE blobs SET digest = 'ff' WHERE id = {piece}",
        *["blobs.digest blobs.whole"] * 2,
    ),
    StoreDamage(
        "another size of a blob",
        "UPDATE blobs SET size = size + 1 WHERE name IS NULL",
        *["blobs.readable blobs.whole"] * 2,
    ),
    StoreDamage(
        "another digest",
        UPDATE_FIRST_MESSAGE.format("sha256 = 'ff'"),
        *["blobs.message_digest"] * 2,
    ),
    StoreDamage(
        "another size",
        UPDATE_FIRST_MESSAGE.format("size = size + 1"),
        "counters.size quota.used blobs.message_size",
        "blobs.message_size",
        failed_checks_without_triggers="orders.sort_keys",
    ),
    StoreDamage(
        "no sort keys",
        "DELETE FROM message_sort_keys WHERE id = {messages[0]}",
        "orders.sort_keys",
    ),
    StoreDamage(
        "another subject key",
        "UPDATE message_sort_keys SET subject_key = 'x' WHERE id = {messages[0]}",
        "orders.sort_keys",
    ),
    StoreDamage(
        "sort keys of another mailbox",
        "UPDATE message_sort_keys SET mailbox_id = {ada.notes_id} WHERE id = {messages[0]}",
        "orders.sort_keys",
    ),
    StoreDamage(
        "sort keys without a message",
        "INSERT INTO message_sort_keys (id, sent_at, sender_key, subject_key, size)"
        " VALUES (5, '2030-01-01 00:00:00', '', '', 1)",
        "orders.message",
    ),
]


async def rename_table(environment: Environment, old: str, new: str) -> None:
    """Rename a table."""
    async with environment.write_session() as session:
        await (await session.connection()).exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")
