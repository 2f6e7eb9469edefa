"""Kinds of damage to a database, as SQL. Tests fill in the names in braces."""

from dataclasses import dataclass

from models.runtime.environment import Environment


@dataclass(frozen=True)
class Harm:
    """A statement, the checks that fail after it, and those that still fail after a repair."""

    name: str
    sql: str
    broken: str
    stays: str = ""


UPDATE_INBOX = "UPDATE mailboxes SET {} WHERE id = {{ada.inbox_id}}"
UPDATE_FIRST_MESSAGE = "UPDATE messages SET {} WHERE id = {{messages[0]}}"
UPDATE_SUBMISSION = "UPDATE submissions SET {} WHERE id = {{submission}}"
COUNTER_CHECKS = "counters.total counters.unseen counters.size"
USAGE_CHECKS = "quota.used quota.message_count"
HARMS = [
    Harm("total", UPDATE_INBOX.format("total = total + 1"), "counters.total"),
    Harm("unseen", UPDATE_INBOX.format("unseen = 0"), "counters.unseen"),
    Harm("size", UPDATE_INBOX.format("size = -5"), "counters.size"),
    Harm("a read one", UPDATE_FIRST_MESSAGE.format("seen = true"), "counters.unseen"),
    Harm("uid_next", UPDATE_INBOX.format("uid_next = 4"), "counters.uid_next"),
    Harm("folder behind", UPDATE_INBOX.format("modseq = 1"), "counters.modseq"),
    Harm("folder ahead", UPDATE_INBOX.format("modseq = 900"), "counters.modseq"),
    Harm(
        "another's folder",
        "UPDATE messages SET mailbox_id = {bob.notes_id} WHERE id = {messages[0]}",
        f"{COUNTER_CHECKS} counters.uid_next counters.modseq counters.modify_index counters.owner",
        "counters.owner",
    ),
    Harm(
        "half archived",
        UPDATE_FIRST_MESSAGE.format("archived_at = '2030-01-01 00:00:00'"),
        f"{USAGE_CHECKS} counters.place",
        "counters.place",
    ),
    Harm("used", "UPDATE users SET used = used + 1 WHERE id = {ada.user_id}", "quota.used"),
    Harm(
        "message_count",
        "UPDATE users SET message_count = 0 WHERE id = {ada.user_id}",
        "quota.message_count",
    ),
    Harm(
        "no inbox",
        UPDATE_INBOX.format("special_use = NULL"),
        "quota.inbox",
        "quota.inbox",
    ),
    Harm("domain's users", "UPDATE domains SET user_count = 7", "quota.user_count"),
    Harm("domain's addresses", "UPDATE domains SET address_count = 7", "quota.address_count"),
    Harm("domain's quota", "UPDATE domains SET quota_allocated = 7", "quota.quota_allocated"),
    Harm(
        "no stream of an account",
        "DELETE FROM streams WHERE id = {bob.user_id}",
        "quota.stream",
        "quota.stream",
    ),
    Harm(
        "no stream of a domain",
        "DELETE FROM streams WHERE id = {ada.domain_id}",
        "quota.stream",
        "quota.stream",
    ),
    Harm(
        "a gap",
        "DELETE FROM changes WHERE stream_id = {ada.user_id} AND last = 2",
        "journal.gap journal.change",
        "journal.gap journal.change",
    ),
    Harm(
        "an id too many",
        "UPDATE changes SET ids = '[1, 2]' WHERE stream_id = {ada.user_id} AND last = 1",
        "journal.gap journal.events journal.change",
        "journal.gap journal.events journal.change",
    ),
    Harm(
        "a lost end",
        "DELETE FROM changes WHERE stream_id = {ada.user_id} AND last = 4",
        "journal.last journal.change",
        "journal.last journal.change",
    ),
    Harm(
        "a lost beginning",
        "UPDATE streams SET gone = 1 WHERE id = {ada.user_id}",
        "journal.gap",
        "journal.gap",
    ),
    Harm(
        "a message vanished",
        "DELETE FROM messages WHERE id = {messages[2]}",
        f"{COUNTER_CHECKS} {USAGE_CHECKS} journal.events threads.messages",
        "journal.events",
    ),
    Harm(
        "said to be deleted",
        "UPDATE changes SET kind = 'MESSAGE_DELETED' WHERE stream_id = {ada.user_id} AND last = 1",
        "journal.events",
        "journal.events",
    ),
    Harm(
        "another's number",
        UPDATE_FIRST_MESSAGE.format("modseq = 2"),
        "journal.change",
        "journal.change",
    ),
    Harm(
        "a number to come",
        UPDATE_FIRST_MESSAGE.format("modseq = 900"),
        "journal.modseq counters.modseq",
        "journal.modseq",
    ),
    Harm(
        "another's thread",
        "UPDATE messages SET thread_id = {bobs_thread} WHERE id = {messages[2]}",
        "threads.thread_owner threads.messages",
        "threads.thread_owner",
    ),
    Harm(
        "a lost thread",
        "DELETE FROM threads WHERE id = {thread}",
        "threads.thread_owner threads.refs_astray",
        "threads.thread_owner",
    ),
    Harm(
        "an empty thread",
        "INSERT INTO threads (id, user_id, subject, created_at)"
        " VALUES (5, {ada.user_id}, '', '2030-01-01 00:00:00')",
        "threads.messages",
    ),
    Harm(
        "a reference astray",
        "UPDATE thread_refs SET thread_id = {bobs_thread} WHERE user_id = {ada.user_id}",
        "threads.refs_astray",
    ),
    Harm("not in the index", UPDATE_FIRST_MESSAGE.format("indexed = true"), "search.indexed"),
    Harm("sent too soon", UPDATE_SUBMISSION.format("state = 'SENT'"), "queue.state"),
    Harm("never tried", "UPDATE deliveries SET next_at = NULL", *["queue.next_attempt"] * 2),
    Harm("no recipients", "DELETE FROM deliveries", *["queue.deliveries"] * 2),
    Harm(
        "the root unreferenced",
        "DELETE FROM message_blobs WHERE message_id = {messages[0]}",
        *["blobs.root_reference"] * 2,
    ),
    Harm(
        "a piece unreferenced",
        "DELETE FROM message_blobs WHERE message_id = {messages[2]} AND blob_id = {piece}",
        "blobs.piece_references",
    ),
    Harm(
        "a piece of sent mail unreferenced",
        "DELETE FROM submission_blobs WHERE blob_id = {piece}",
        "blobs.piece_references",
    ),
    Harm(
        "a root lost",
        "DELETE FROM blobs WHERE id ="
        " (SELECT blob_id FROM messages WHERE messages.id = {messages[0]})",
        *["blobs.root blobs.lost_references"] * 2,
    ),
    Harm(
        "a piece lost",
        "DELETE FROM blobs WHERE id = {piece}",
        *["blobs.lost_references blobs.whole"] * 2,
    ),
    Harm(
        "another digest of a blob",
        "UPDATE blobs SET digest = 'ff' WHERE id = {piece}",
        *["blobs.digest blobs.whole"] * 2,
    ),
    Harm(
        "another size of a blob",
        "UPDATE blobs SET size = size + 1 WHERE name IS NULL",
        *["blobs.readable blobs.whole"] * 2,
    ),
    Harm(
        "another digest",
        UPDATE_FIRST_MESSAGE.format("digest = 'ff'"),
        *["blobs.message_digest"] * 2,
    ),
    Harm(
        "another size",
        UPDATE_FIRST_MESSAGE.format("size = size + 1"),
        "counters.size quota.used blobs.message_size",
        "blobs.message_size",
    ),
]


async def rename_table(environment: Environment, old: str, new: str) -> None:
    """Rename a table."""
    async with environment.write_session() as session:
        await (await session.connection()).exec_driver_sql(f"ALTER TABLE {old} RENAME TO {new}")
