"""Apply a DSN of another server to the submission it reports, in the transaction that stores it.

The DSN must be addressed to the envelope sender of a submission of the receiving account, and name
a recipient that another server has accepted. It is proven if its envelope ID has the proof that
only that server received (mail/queue/dsn_requests.py). Without proof anyone who knows the Message-
ID can have written it; it is then stored as unproven. A DSN never causes a retry.
"""

from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import func, or_, select, update
from sqlmodel import col

from mail.addresses.address_syntax import normalized_address
from mail.addresses.quoted_local_part import remove_needless_quotes
from mail.envelope.delivery_jobs import DsnAction
from mail.envelope.local_recipient import LocalRecipient
from mail.inbound.dsn_parser import ReceivedDsn, RecipientResult
from mail.mime.header_encoding import with_ascii_domain
from mail.queue import dsn_requests
from mail.queue.delivery_results import refresh_and_journal_submission_state
from mail.storage.message_trace import stored_text
from mail.text.storable_text import make_storable
from models.observability import metrics
from models.queue.tables import DeliveryState, QueueEntry
from models.runtime.environment import DatabaseTransaction
from models.store.columns import ColumnRow
from models.submission.tables import Submission

MAX_SUBMISSIONS = 20  # submissions of one message that a report may be about

REPORTS = metrics.counter(
    "merganser_queue_reports",
    "Recipients in received DSNs: failed, delayed, delivered, relayed, expanded.",
    "action",
)


@dataclass
class _ReportedRecipients:
    """The reported recipients by the spellings of their address and by ORCPT."""

    results_by_address: dict[str, RecipientResult] = field(default_factory=dict)
    results_by_orcpt: dict[str, RecipientResult] = field(default_factory=dict)

    def result_of_delivery_or_none(self, delivery_row: ColumnRow) -> RecipientResult | None:
        """Return the reported result of a delivery, None if the report doesn't name it."""
        fate = self.results_by_orcpt.get((delivery_row.orcpt or "").lower())
        return fate or next(
            (
                self.results_by_address[name]
                for name in lowercase_address_spellings(delivery_row.recipient)
                if name in self.results_by_address
            ),
            None,
        )


def update_reported_deliveries(
    transaction: DatabaseTransaction,
    recipient: LocalRecipient,
    report: ReceivedDsn,
    *,
    require_proof: bool = False,
) -> None:
    """Update the deliveries that a report is about. A report about no submission has no effect.

    With `require_proof`, results without proof are ignored.
    """
    own_envelope_id = dsn_requests.parse_own_envelope_id_or_none(report.envid or "")
    rows = [
        row
        for row in _find_possibly_reported_submissions(
            transaction, recipient, report, own_envelope_id
        )
        if _is_addressed_to_sender(recipient, row.envelope_from)
    ]
    reported_results = _index_reported_results(report.recipient_results)
    for row in rows:
        changed = 0
        for delivery in _find_reported_deliveries(transaction, row.id, reported_results):
            fate = reported_results.result_of_delivery_or_none(delivery)
            proven = _has_valid_proof(transaction, row, delivery, own_envelope_id)
            if (
                fate
                and (proven or not require_proof)
                and _update_delivery_if_changed(
                    transaction, delivery, fate, report.reporting_mta, proven
                )
            ):
                REPORTS.add(str(fate.action))
                changed += 1
        if changed:
            refresh_and_journal_submission_state(
                transaction, recipient.user_id, row.id, changed_at=transaction.environment.now()
            )


def _has_valid_proof(
    transaction: DatabaseTransaction,
    submission_row: ColumnRow,
    delivery_row: ColumnRow,
    own_envelope_id: dsn_requests.OwnEnvelopeId | None,
) -> bool:
    """Return True if the report has the proof for this delivery."""
    if own_envelope_id is None or own_envelope_id.queue_id != submission_row.queue_id:
        return False
    return dsn_requests.is_valid_proof(
        transaction.environment, submission_row.queue_id, delivery_row.domain, own_envelope_id.proof
    )


def _find_possibly_reported_submissions(
    transaction: DatabaseTransaction,
    recipient: LocalRecipient,
    report: ReceivedDsn,
    own_envelope_id: dsn_requests.OwnEnvelopeId | None,
) -> Sequence[ColumnRow]:
    """Return the submissions of the account that the report can be about, the newest first.

    Columns: id, queue_id, envelope_from.
    """
    statement = (
        select(col(Submission.id), col(Submission.queue_id), col(Submission.envelope_from))
        .where(col(Submission.user_id) == recipient.user_id)
        .order_by(col(Submission.created_at).desc(), col(Submission.id).desc())
        .limit(MAX_SUBMISSIONS)
    )
    lookups: list[Any] = (
        [col(Submission.queue_id) == own_envelope_id.queue_id] if own_envelope_id else []
    )
    if report.envid and not own_envelope_id:
        lookups.append(col(Submission.envid) == make_storable(report.envid))
    if report.original_message_id:
        lookups.append(col(Submission.header_id) == stored_text(report.original_message_id))
    for find_submissions in lookups:
        if rows := transaction.connection.execute(statement.where(find_submissions)).all():
            return rows
    return []


def _is_addressed_to_sender(recipient: LocalRecipient, envelope_sender: str) -> bool:
    """Return True if the report was sent to the envelope sender of the submission."""
    addresses = {
        normalized_address(address)
        for address in (recipient.address, recipient.original_address, recipient.rewritten_address)
        if address
    }
    return normalized_address(envelope_sender) in addresses


def _index_reported_results(recipient_results: Iterable[RecipientResult]) -> _ReportedRecipients:
    """Index the reported results by address and ORCPT."""
    reported_results = _ReportedRecipients()
    for fate in recipient_results:
        if fate.orcpt:
            reported_results.results_by_orcpt.setdefault(fate.orcpt, fate)
        for address in fate.addresses:
            for name in lowercase_address_spellings(address):
                reported_results.results_by_address.setdefault(name, fate)
    return reported_results


def lowercase_address_spellings(address: str) -> set[str]:
    """The spellings of an address in lower case: with the domain as given, in Unicode and in ASCII.

    Needless quotes of the local part are removed; its label and dots stay.
    """
    local, _, domain = remove_needless_quotes(address.lower()).rpartition("@")
    spellings = {f"{local}@{domain}", f"{local}@{normalized_address(address).domain}"}
    with suppress(UnicodeError):  # not a valid host name: only the given spelling is compared
        spellings.add(with_ascii_domain(f"{local}@{domain}"))
    return spellings


def _find_reported_deliveries(
    transaction: DatabaseTransaction, submission_id: int, reported_recipients: _ReportedRecipients
) -> Sequence[ColumnRow]:
    """Return the rows of the submission's deliveries that the report names, by ID."""
    statement = (
        select(
            col(QueueEntry.id),
            col(QueueEntry.recipient),
            col(QueueEntry.domain),
            col(QueueEntry.orcpt),
            col(QueueEntry.state),
            col(QueueEntry.last_response),
            col(QueueEntry.dsn_verified),
        )
        .where(
            col(QueueEntry.submission_id) == submission_id,
            or_(
                func.lower(col(QueueEntry.recipient)).in_(
                    map(make_storable, reported_recipients.results_by_address)
                ),
                func.lower(col(QueueEntry.orcpt)).in_(
                    map(make_storable, reported_recipients.results_by_orcpt)
                ),
            ),
        )
        .order_by(col(QueueEntry.id))
    )
    return transaction.connection.execute(statement).all()


def _update_delivery_if_changed(
    transaction: DatabaseTransaction,
    delivery_row: ColumnRow,
    recipient_result: RecipientResult,
    reporting_mta: str,
    is_proven: bool,
) -> bool:
    """Update a delivery from a report and return True if it changed.

    An unproven report doesn't change a delivery with a proven one.
    """
    state = _state_after_report_or_none(delivery_row, recipient_result.action, is_proven=is_proven)
    text = make_storable(recipient_result.reply_text)
    if state is None or (delivery_row.dsn_verified and not is_proven):
        return False
    if (state, text, is_proven) == (
        delivery_row.state,
        delivery_row.last_response,
        delivery_row.dsn_verified,
    ):
        return False
    statement = update(QueueEntry).where(col(QueueEntry.id) == delivery_row.id)
    transaction.connection.execute(
        statement.values(
            state=state,
            last_code=recipient_result.reply_code,
            last_response=text,
            reported_at=transaction.environment.now(),
            dsn_reporter=make_storable(reporting_mta) or None,
            dsn_verified=is_proven,
        )
    )
    return True


def _state_after_report_or_none(
    delivery_row: ColumnRow, action: DsnAction, *, is_proven: bool
) -> DeliveryState | None:
    """Return the state of a delivery after a report, None if the report must not change it.

    Deliveries that wait in the queue or failed here keep their state.
    """
    doubted = (
        delivery_row.state is DeliveryState.BOUNCED
        and delivery_row.dsn_verified is False
        and is_proven
    )
    if delivery_row.state not in dsn_requests.DELIVERED_STATES and not doubted:
        return None
    if action is DsnAction.FAILED:
        return DeliveryState.BOUNCED
    if action is DsnAction.DELIVERED:
        return DeliveryState.DELIVERED
    return DeliveryState.RELAYED if doubted else DeliveryState(delivery_row.state)
