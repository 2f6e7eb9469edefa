"""Receipts of queued mail: a repeated delivery finds them, and queues nothing again."""

import hashlib

from sqlalchemy import select
from sqlmodel import col

from mail.storage.message_insert import upsert_receipt
from models.messages.tables import DeliveryReceipt
from models.runtime.environment import DatabaseTransaction


def record_receipt_if_new(transaction: DatabaseTransaction, receipt_text: str) -> bool:
    """Store a receipt of this text. Returns False if there is one within the receipt period.

    The stream of the platform must be locked, or that of the only user whose mail has this text.
    """
    if is_receipt_known(transaction, receipt_text):
        return False
    record_receipt(transaction, receipt_text)
    return True


def is_receipt_known(transaction: DatabaseTransaction, receipt_text: str) -> bool:
    """Return True if there is a receipt of this text within the receipt period."""
    since = (
        transaction.environment.now() - transaction.environment.options.duplicate_delivery_retention
    )
    statement = select(col(DeliveryReceipt.digest)).where(
        col(DeliveryReceipt.digest) == _digest(receipt_text), col(DeliveryReceipt.at) > since
    )
    return transaction.connection.execute(statement).first() is not None


def record_receipt(transaction: DatabaseTransaction, receipt_text: str) -> None:
    """Store a receipt of this text."""
    now = transaction.environment.now()
    receipt = {"digest": _digest(receipt_text), "message_id": 0, "at": now}
    transaction.execute_statements([(upsert_receipt(transaction.connection.dialect.name), receipt)])


def _digest(receipt_text: str) -> str:
    return hashlib.sha256(receipt_text.encode()).hexdigest()
