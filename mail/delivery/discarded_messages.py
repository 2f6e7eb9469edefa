"""Copy messages that an account does not store to its legal holds.

Rules delete these messages, or only redirect them. A refused message is none of them: its sender
knows that it was not delivered.
"""

import asyncio
from contextlib import ExitStack
from dataclasses import replace

from mail.delivery.delivery_plan import DeliveryPlan
from mail.delivery.plan_execution import prepare_messages_for_placements, storage_placement
from mail.inbound.incoming_message import IncomingMessage
from mail.queue.receipts import record_receipt_if_new
from mail.storage import held_copies, message_columns, received_messages
from mail.storage.blobs.blob_writer import StoredMessageBlobs, upsert_blob_rows
from models.runtime.environment import DatabaseTransaction, Environment


async def copy_to_running_legal_holds(
    environment: Environment,
    incoming: IncomingMessage,
    plan: DeliveryPlan,
    encryption_slot: asyncio.Semaphore,
) -> None:
    """Copy the message as the fallback mailbox would store it. On return the copy is durable.

    Without a running legal hold this is one SELECT. A repeated delivery is copied once. Raises
    ServiceUnavailable if the message can't be encrypted.
    """
    recipient = plan.recipient_verdict.recipient
    if not await held_copies.has_running_legal_hold(environment, recipient.user_id):
        return
    plan = replace(plan, placements=[plan.fallback_placement])
    placement = storage_placement(environment, incoming, plan, plan.fallback_placement)
    receipt = received_messages.receipt_digest(
        incoming.message, recipient, incoming.envelope_sender
    )
    async with encryption_slot:
        with ExitStack() as temporary_files:
            (message,) = await prepare_messages_for_placements(
                environment, incoming, plan, temporary_files
            )

            def copy_unless_repeated(
                transaction: DatabaseTransaction, stored_blobs: StoredMessageBlobs
            ) -> None:
                if not record_receipt_if_new(transaction, f"held copy\0{receipt}"):
                    return
                blobs = upsert_blob_rows(transaction, stored_blobs)
                held_copies.copy_received_message_to_legal_holds(
                    transaction,
                    recipient.user_id,
                    transaction.environment.new_id(),
                    {
                        **message_columns.content_and_reset_state_columns(message),
                        "blob_id": blobs[stored_blobs.layout_digest],
                        "received_at": placement.received_at,
                        "envelope_from": placement.envelope_from,
                        "envelope_to": list(placement.envelope_to),
                    },
                    list(blobs.values()),
                )

            await received_messages.store_blobs_and_run_transaction(
                environment, recipient.tenant_id, message, copy_unless_repeated, recipient.user_id
            )
