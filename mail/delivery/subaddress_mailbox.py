"""Deliver mail of a subaddress to a mailbox: `ada+news@` to `INBOX/news`, if enabled.

Senders choose labels, so the number of mailboxes is limited and they are all below INBOX. At the
limit the message stays in INBOX. Labels in subjects: mail/storage/delivery_headers.py.
"""

from dataclasses import replace

from sqlalchemy import String, bindparam, func, select
from sqlmodel import col

from mail.envelope.local_recipient import LocalRecipient
from mail.inbound.spam_check import RecipientVerdict
from mail.mailboxes import creation
from mail.mailboxes.paths import INBOX, validate_path
from mail.recipients.address_resolution import ENCRYPTION_KEY
from models.errors import InvalidInput
from models.mailboxes.tables import Mailbox
from models.runtime.environment import DatabaseTransaction, Environment
from models.store.columns import ColumnRow
from models.store.prepared_statements import PreparedStatement, integer_parameter
from models.users.tables import SubaddressAction, User

MAX_MAILBOXES = 100  # children of INBOX, at which no more are created


async def find_or_create_subaddress_mailbox(
    environment: Environment, recipient_verdict: RecipientVerdict
) -> RecipientVerdict:
    """Return the verdict with the mailbox of the label. Spam stays in Junk."""
    recipient = recipient_verdict.recipient
    wants_subfolder = recipient.label and recipient.subaddress_action is SubaddressAction.SUBFOLDER
    if not wants_subfolder or recipient_verdict.verdict.is_spam:
        return recipient_verdict
    path = mailbox_path_of_label_or_none(recipient.label)
    row = await _find_or_create_within_limit(environment, recipient, path) if path else None
    if row is None:
        return recipient_verdict
    return RecipientVerdict(
        replace(recipient, mailbox_id=row.id, encryption_key=row.key), recipient_verdict.verdict
    )


def mailbox_path_of_label_or_none(label: str) -> str | None:
    """Return the mailbox path of a label, None if the label is not a valid mailbox name."""
    try:
        path = validate_path(f"{INBOX}/{label.lower()}")
    except InvalidInput:
        return None
    return path if path.count("/") == 1 else None


async def _find_or_create_within_limit(
    environment: Environment, recipient: LocalRecipient, mailbox_path: str
) -> ColumnRow | None:
    """Return id and encryption key of the mailbox. Creates it if there are not too many."""
    parameters = {"user": recipient.user_id, "path": mailbox_path}
    rows = await environment.database.read_prepared(_SELECT_MAILBOX, parameters)
    if not rows:
        await environment.run_transaction(
            lambda turn: _create_mailbox_within_limit(turn, recipient.user_id, mailbox_path),
            recipient.user_id,
        )
        rows = await environment.database.read_prepared(_SELECT_MAILBOX, parameters)
    return rows[0] if rows else None


_SELECT_MAILBOX = PreparedStatement(
    select(col(Mailbox.id), ENCRYPTION_KEY.label("key"))
    .join(User, col(User.id) == col(Mailbox.user_id))
    .where(
        col(Mailbox.user_id) == integer_parameter("user"),
        col(Mailbox.path) == bindparam("path", type_=String),
    )
)


def _create_mailbox_within_limit(
    transaction: DatabaseTransaction, user_id: int, mailbox_path: str
) -> None:
    """Create the mailbox unless INBOX has MAX_MAILBOXES children. The account must be locked."""
    below = col(Mailbox.path).startswith(f"{INBOX}/", autoescape=True)
    statement = select(func.count()).where(col(Mailbox.user_id) == user_id, below)
    if transaction.connection.execute(statement).scalar_one() < MAX_MAILBOXES:
        creation.find_or_create_mailbox_id_or_none_at_limit(transaction, user_id, mailbox_path)
