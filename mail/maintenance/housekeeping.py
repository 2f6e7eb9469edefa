"""Housekeeping: delete expired rows, purge deleted messages, and free unused blobs."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from sqlalchemy import ColumnElement, delete, exists, select, text, update
from sqlmodel import SQLModel, col

from mail.delivery import quarantine
from mail.files import resumable_file
from mail.files.upload_removal import delete_expired_uploads
from mail.maintenance import (
    expired_addresses,
    expired_messages,
    journal_retention,
    row_batches,
    statistics_retention,
    unused_oauth_clients,
)
from mail.storage.blobs.garbage_collector import collect_garbage
from models.admin.audit_log import AuditLogEntry
from models.admin.key_values import KeyValueEntry
from models.admin.legal_holds import HeldCopy, LegalHold
from models.admin.settings import SettingHistoryEntry
from models.admin.tasks import Task, UndoRecord
from models.auth.application_passwords import ApplicationPassword
from models.auth.credential_changes import CredentialChange, is_old_change_not_among_newest
from models.auth.credentials import SECOND_FACTOR_TIMEOUT, THROTTLE_RESET, AccessToken, Throttle
from models.auth.second_factors import TotpSecret, WebauthnChallenge
from models.auth.security_log import SecurityEvent
from models.autoreply import AutoreplySender
from models.cluster.process_requests import ProcessAnswer, ProcessRequest
from models.connectors import Connector, ConnectorRun
from models.events.event_types import EventType
from models.events.journal import JournalEntry
from models.files.blobs import SubmissionBlob, Upload
from models.files.tables import File, FileShare
from models.filters.sieve_scripts import SieveMemory
from models.identity_providers import IdentityLink, IdentitySession, UsedIdentityToken
from models.messages.message_trace import DeliveryTraceStep
from models.messages.tables import DeliveryReceipt
from models.oauth.tables import (
    CODE_RETENTION,
    SIGNING_KEY_RETENTION,
    OauthAuthorizationCode,
    OauthGrant,
    OauthRefreshToken,
    OauthSigningKey,
)
from models.queue.rate_limits import RateLimitHold, RateWindow
from models.queue.tables import IS_OPEN, DestinationSlot, QueueEntry
from models.resources.tables import BOOKING_RETENTION, Booking
from models.runtime.environment import DatabaseTransaction, Environment
from models.runtime.idempotency import IdempotentPayload
from models.runtime.options import Options
from models.runtime.server_processes import ServerProcess
from models.spam.greylist import GreylistEntry
from models.spam.quarantine import QuarantineItem
from models.submission.compose_requests import ComposeListener, ComposeRequest
from models.throttling.policy import BAN_HISTORY
from models.throttling.tables import NetworkBan, NetworkFailure
from models.transfer import Export, ImportArchive
from models.users.tables import Usage

log = logging.getLogger(__name__)

FIRST_DELAY = 60.0  # seconds after the start
ROUND_INTERVAL = 900.0  # seconds between rounds
SWEEP_INTERVAL = 86_400.0  # seconds
TASK_RETENTION = timedelta(days=7)  # after the end of a task
IMPORT_RETENTION = timedelta(days=30)  # after the end of a single import
PROCESS_REQUEST_RETENTION = timedelta(minutes=10)  # also of the answers
# WebAuthn challenges, and TOTP secrets that were not confirmed
UNCONFIRMED_RETENTION = timedelta(hours=6)


@dataclass(frozen=True, slots=True)
class HousekeepingResult:
    """The number of rows that one round deleted. `expired` messages became deleted messages.

    The field names are the keys of the log entry.
    """

    purged: int = 0
    expired: int = 0
    threads: int = 0
    legal_holds: int = 0  # that ended
    copies: int = 0  # legal hold copies of messages
    files: int = 0  # unused files
    quarantined: int = 0  # expired quarantine items
    announced: int = 0  # users that got a quarantine digest
    shares: int = 0  # expired file shares
    exports: int = 0  # expired exports of users
    archives: int = 0  # import archives without a running task
    imports: int = 0  # finished single imports
    receipts: int = 0
    replays: int = 0
    bookings: int = 0  # of resources, with rows of cancelled and declined ones
    undos: int = 0
    tokens: int = 0
    throttles: int = 0
    network_failures: int = 0  # windows of failures that are over
    network_bans: int = 0  # bans that ended long ago
    credential_changes: int = 0
    events: int = 0  # entries of the security log
    steps: int = 0  # delivery trace steps
    entries: int = 0  # entries of the audit log
    settings: int = 0  # entries of the settings history
    usages: int = 0
    windows: int = 0  # sending windows
    turns: int = 0  # delivery slots of destinations
    holds: int = 0  # users that had reached a sending limit
    autoreply_senders: int = 0  # recipients of vacation replies whose interval is over
    sieve_memories: int = 0  # stored values of Sieve scripts
    greylisted: int = 0  # greylisting entries
    sent: int = 0  # blob references of finished submissions
    compose_requests: int = 0  # expired compose requests
    compose_listeners: int = 0  # of processes that have stopped
    process_requests: int = 0  # of processes that have stopped, or that not all have answered
    process_answers: int = 0  # that came too late
    statistics: int = 0  # steps that are too old
    addresses: int = 0  # expired temporary addresses
    uploads: int = 0
    changes: int = 0
    tasks: int = 0
    app_passwords: int = 0
    challenges: int = 0
    seeds: int = 0
    key_values: int = 0
    oauth_codes: int = 0
    oauth_refresh_tokens: int = 0
    oauth_signing_keys: int = 0
    identity_sessions: int = 0
    used_identity_tokens: int = 0
    oauth_clients: int = 0  # that have registered themselves and are not used
    blobs: int = 0
    objects: int = 0
    bytes: int = 0  # stored bytes of the deleted blobs and objects


async def run_until_stopped(
    environment: Environment, stop: asyncio.Event, upload_folder: Path | None = None
) -> None:
    """Run a round every `ROUND_INTERVAL` seconds until `stop` is set; once a day it sweeps.

    Several processes can run it at the same time. `upload_folder` has the unfinished uploads.
    """
    swept_at, seconds = None, FIRST_DELAY
    while not await _wait_for_stop_or_timeout(stop, seconds):
        seconds, now = ROUND_INTERVAL, time.monotonic()
        is_sweep_due = swept_at is None or now - swept_at >= SWEEP_INTERVAL
        try:
            result = await run_housekeeping_round(environment, sweep=is_sweep_due)
            if upload_folder is not None:
                await delete_orphaned_upload_files(environment, upload_folder)
        except Exception:  # any error: the next round must still run
            log.exception("Housekeeping failed")
            continue
        swept_at = now if is_sweep_due else swept_at
        counts = {name: count for name, count in asdict(result).items() if count}
        log.info("Housekeeping finished", extra=counts)


async def _wait_for_stop_or_timeout(stop: asyncio.Event, seconds: float) -> bool:
    """Wait for `stop`, at most this number of seconds. Returns True if it is set."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stop.wait()
    return stop.is_set()


async def run_housekeeping_round(
    environment: Environment, *, sweep: bool = True
) -> HousekeepingResult:
    """Run one round and return its counts.

    With `sweep`, it also deletes journal entries and statistics by age, objects without a row, and
    empty threads.
    """
    expired_count = await expired_messages.move_expired_to_deleted_messages(environment)
    purged, threads = await expired_messages.purge_due_messages_and_empty_threads(environment)
    expired_rows = _expired_row_conditions(environment)
    count_by_name = {
        name: await row_batches.delete_rows(environment, table, condition)
        for name, (table, condition) in expired_rows.items()
    }
    files = await _delete_unfetched_unshared_files(environment)
    quarantine_count = await _delete_expired_quarantine_items(environment)
    announced = await quarantine.insert_due_notification_tasks(environment)
    legal_holds, copies = await _end_expired_legal_holds_and_delete_copies(environment)
    uploads = await delete_expired_uploads(environment)
    oauth_clients = await unused_oauth_clients.delete_unused_registered_clients(environment)
    addresses = await expired_addresses.delete_addresses_after_reservation(environment)
    changes = await journal_retention.delete_excess_and_old_entries(environment, by_age=sweep)
    statistics = 0
    if sweep:
        statistics = await statistics_retention.delete_old_steps(environment)
        threads += await expired_messages.delete_all_empty_threads(environment)
    await environment.database.refresh_planner_statistics()
    restore_window = environment.options.backup_restore_window
    collected = await collect_garbage(
        environment, environment.object_store, keep_objects_for=restore_window, list_objects=sweep
    )
    return HousekeepingResult(
        purged=purged,
        expired=expired_count,
        threads=threads,
        legal_holds=legal_holds,
        copies=copies,
        files=files,
        quarantined=quarantine_count,
        announced=announced,
        uploads=uploads,
        oauth_clients=oauth_clients,
        addresses=addresses,
        changes=changes,
        statistics=statistics,
        blobs=collected.row_count,
        objects=collected.object_count,
        bytes=collected.byte_count,
        **count_by_name,
    )


def _expired_row_conditions(environment: Environment) -> dict[str, tuple[type[SQLModel], Any]]:
    """The tables with expired rows, and the condition for them, by the name of the count."""
    now = environment.now()
    return {
        **_conditions_by_retention(now, environment.options),
        "shares": (FileShare, col(FileShare.expires_at) <= now),
        "exports": (Export, col(Export.expires_at) <= now),
        "archives": (ImportArchive, ~_is_task_or_run_active(col(ImportArchive.task_id))),
        "bookings": (Booking, col(Booking.ends_at) <= now - BOOKING_RETENTION),
        "undos": (UndoRecord, col(UndoRecord.expires_at) <= now),
        "credential_changes": (CredentialChange, is_old_change_not_among_newest(now)),
        "usages": (Usage, col(Usage.until) <= now),
        "windows": (RateWindow, col(RateWindow.until) <= now),
        "turns": (DestinationSlot, col(DestinationSlot.until) <= now),
        "holds": (RateLimitHold, col(RateLimitHold.notified_until) <= now),
        "autoreply_senders": (AutoreplySender, col(AutoreplySender.until) <= now),
        "sieve_memories": (SieveMemory, col(SieveMemory.until) <= now),
        "greylisted": (GreylistEntry, col(GreylistEntry.until) <= now),
        "sent": (SubmissionBlob, ~_has_open_entry_or_owed_report()),
        "compose_requests": (ComposeRequest, col(ComposeRequest.expires_at) <= now),
        "compose_listeners": (
            ComposeListener,
            col(ComposeListener.holder).not_in(select(col(ServerProcess.id))),
        ),
        "app_passwords": (ApplicationPassword, col(ApplicationPassword.expires_at) <= now),
        "key_values": (KeyValueEntry, col(KeyValueEntry.expires_at) <= now),
        "oauth_codes": (
            OauthAuthorizationCode,
            col(OauthAuthorizationCode.expires_at) <= now - CODE_RETENTION,
        ),
        "oauth_refresh_tokens": (OauthRefreshToken, col(OauthRefreshToken.expires_at) <= now),
        "identity_sessions": (
            IdentitySession,
            (col(IdentitySession.created_at) <= now - CODE_RETENTION) & ~_has_token_of_family(),
        ),
        "used_identity_tokens": (UsedIdentityToken, col(UsedIdentityToken.expires_at) <= now),
        "oauth_signing_keys": (
            OauthSigningKey,
            col(OauthSigningKey.retires_at) <= now - SIGNING_KEY_RETENTION,
        ),
    }


def _conditions_by_retention(
    now: datetime, options: Options
) -> dict[str, tuple[type[SQLModel], Any]]:
    """The conditions for rows that are kept for a fixed or configured time."""
    delivery_limit = now - options.duplicate_delivery_retention
    idempotency_limit = now - options.idempotency_retention
    security_limit = now - options.security_log_retention
    trace_limit = now - options.message_trace_retention
    audit_limit = now - options.audit_log_retention
    process_limit = now - PROCESS_REQUEST_RETENTION
    unconfirmed_limit = now - UNCONFIRMED_RETENTION
    is_old_pending_token = col(AccessToken.pending) & (
        col(AccessToken.created_at) <= now - SECOND_FACTOR_TIMEOUT
    )
    return {
        "imports": (Connector, _is_import_finished_before(now - IMPORT_RETENTION)),
        "receipts": (DeliveryReceipt, col(DeliveryReceipt.at) <= delivery_limit),
        "replays": (IdempotentPayload, col(IdempotentPayload.at) <= idempotency_limit),
        "tokens": (AccessToken, (col(AccessToken.expires_at) <= now) | is_old_pending_token),
        "throttles": (Throttle, col(Throttle.until) <= now - THROTTLE_RESET),
        "network_failures": (NetworkFailure, col(NetworkFailure.window_ends_at) <= now),
        "network_bans": (NetworkBan, col(NetworkBan.ends_at) <= now - BAN_HISTORY),
        "events": (SecurityEvent, col(SecurityEvent.created_at) <= security_limit),
        "steps": (DeliveryTraceStep, col(DeliveryTraceStep.at) <= trace_limit),
        "entries": (AuditLogEntry, col(AuditLogEntry.at) <= audit_limit),
        "settings": (SettingHistoryEntry, col(SettingHistoryEntry.at) <= audit_limit),
        "tasks": (Task, col(Task.finished_at) <= now - TASK_RETENTION),
        "process_requests": (ProcessRequest, col(ProcessRequest.created_at) <= process_limit),
        "process_answers": (ProcessAnswer, col(ProcessAnswer.created_at) <= process_limit),
        "challenges": (WebauthnChallenge, col(WebauthnChallenge.created_at) <= unconfirmed_limit),
        "seeds": (
            TotpSecret,
            col(TotpSecret.seed).is_(None) & (col(TotpSecret.pending_at) <= unconfirmed_limit),
        ),
    }


def _is_task_or_run_active(task_or_run_id: Any) -> ColumnElement[bool]:
    """SQL: a task or connector run with this id exists and is not finished."""
    task = exists().where(col(Task.id) == task_or_run_id, col(Task.finished_at).is_(None))
    connector_run = exists().where(
        col(ConnectorRun.id) == task_or_run_id, col(ConnectorRun.finished_at).is_(None)
    )
    return task | connector_run


def _has_token_of_family() -> ColumnElement[bool]:
    """SQL: a token of the family that began in a session at an identity provider is stored.

    The tokens are found by their user, since no index begins with the family.
    """
    family_id, user_id = col(IdentitySession.family_id), col(IdentityLink.user_id)
    grant_ids = select(col(OauthGrant.id)).where(col(OauthGrant.user_id) == user_id)
    refresh_token = exists().where(
        col(OauthRefreshToken.grant_id).in_(grant_ids),
        col(OauthRefreshToken.family_id) == family_id,
    )
    access_token = exists().where(
        col(AccessToken.user_id) == user_id, col(AccessToken.oauth_family_id) == family_id
    )
    is_link = col(IdentityLink.id) == col(IdentitySession.link_id)
    return exists().where(is_link, refresh_token | access_token)


def _has_open_entry_or_owed_report() -> ColumnElement[bool]:
    """SQL: a submission has an open queue entry, or still owes a success report."""
    is_same_submission = col(QueueEntry.submission_id) == col(SubmissionBlob.submission_id)
    owed = exists().where(is_same_submission, col(QueueEntry.pending_dsn_action).is_not(None))
    return exists().where(is_same_submission, text(f"queue_entries.{IS_OPEN}")) | owed


def _is_import_finished_before(before: datetime) -> ColumnElement[bool]:
    """SQL: a single import with a run that ended before this time."""
    ended = (col(ConnectorRun.finished_at) <= before) & (
        col(ConnectorRun.connector_id) == col(Connector.id)
    )
    next_run_at = col(Connector.next_run_at)
    return col(Connector.is_one_time) & next_run_at.is_(None) & exists().where(ended)


class _EndedLegalHoldCounts(NamedTuple):
    """How many legal holds ended, and how many of their copies were deleted."""

    legal_hold_count: int
    copy_count: int


async def _end_expired_legal_holds_and_delete_copies(
    environment: Environment,
) -> _EndedLegalHoldCounts:
    """End expired legal holds, and delete the copies of ended legal holds.

    Returns the number of legal holds and of copies. The row of a legal hold is kept unless it was
    removed.
    """
    now = environment.now()
    statement = update(LegalHold).where(
        col(LegalHold.ended_at).is_(None), col(LegalHold.expires_at) <= now
    )
    statement = statement.values(ended_at=now).returning(col(LegalHold.id))
    ended_ids = await environment.run_transaction(
        lambda transaction: transaction.connection.execute(statement).scalars().all()
    )
    if ended_ids:
        log.info("Expired legal holds ended", extra={"legal_holds": list(ended_ids)})
    ended_legal_holds = select(col(LegalHold.id)).where(col(LegalHold.ended_at).is_not(None))
    copy_count = await row_batches.delete_rows(
        environment, HeldCopy, col(HeldCopy.legal_hold_id).in_(ended_legal_holds)
    )
    deletion = delete(LegalHold).where(col(LegalHold.removed), col(LegalHold.ended_at).is_not(None))
    await environment.run_transaction(
        lambda transaction: transaction.connection.execute(deletion).rowcount
    )
    return _EndedLegalHoldCounts(len(ended_ids), copy_count)


async def _delete_unfetched_unshared_files(environment: Environment) -> int:
    """Delete files that were neither fetched nor shared for the retention time.

    Returns their number.
    """
    if not environment.options.files_retention:
        return 0
    is_shared = exists().where(col(FileShare.file_id) == col(File.id))
    conditions = [
        col(File.used_at) <= environment.now() - environment.options.files_retention,
        ~is_shared,
    ]
    statement = select(col(File.id), col(File.user_id)).where(*conditions)

    async def delete_files_of_user(
        environment: Environment, user_id: int, file_ids: Sequence[int]
    ) -> int:
        removal = (
            delete(File).where(col(File.id).in_(file_ids), *conditions).returning(col(File.id))
        )

        def delete_batch(transaction: DatabaseTransaction) -> int:
            deleted_ids = list(transaction.connection.execute(removal).scalars())
            if deleted_ids:
                transaction.record_entry(
                    user_id,
                    JournalEntry(EventType.FILE_DELETED, deleted_ids),
                    at=environment.now(),
                )
            return len(deleted_ids)

        return await environment.run_transaction(delete_batch, user_id)

    return await row_batches.run_in_batches_by_user(
        environment, statement.order_by(col(File.used_at), col(File.id)), delete_files_of_user
    )


async def _delete_expired_quarantine_items(environment: Environment) -> int:
    """Delete expired quarantine items. Returns their number."""
    statement = select(col(QuarantineItem.id), col(QuarantineItem.user_id))
    statement = statement.where(col(QuarantineItem.expires_at) <= environment.now())

    async def delete_items_of_user(
        environment: Environment, user_id: int, item_ids: Sequence[int]
    ) -> int:
        work = partial(
            quarantine.delete_quarantine_items,
            user_id=user_id,
            item_ids=item_ids,
            event_type=EventType.QUARANTINE_EXPIRED,
        )
        return await environment.run_transaction(work, user_id)

    order = col(QuarantineItem.expires_at), col(QuarantineItem.id)
    return await row_batches.run_in_batches_by_user(
        environment, statement.order_by(*order), delete_items_of_user
    )


async def delete_orphaned_upload_files(environment: Environment, upload_folder: Path) -> int:
    """Delete upload files without an unfinished upload. Returns their number.

    The row of an upload is inserted before its file, so a file without a row is unused.
    """
    upload_ids = await asyncio.to_thread(resumable_file.list_file_keys, upload_folder)
    deleted_count = 0
    statement = select(col(Upload.id)).where(
        col(Upload.blob_name).is_(None), col(Upload.expires_at) > environment.now()
    )
    for start in range(0, len(upload_ids), row_batches.BATCH_SIZE):
        batch_ids = upload_ids[start : start + row_batches.BATCH_SIZE]
        rows = await environment.database.read(statement.where(col(Upload.id).in_(batch_ids)))
        orphaned_ids = set(batch_ids).difference(row.id for row in rows)
        deleted_count += await asyncio.to_thread(
            resumable_file.remove_files_and_count_keys, upload_folder, orphaned_ids
        )
    return deleted_count
