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

from mail.addresses.address_syntax import normal
from mail.envelope.delivery_jobs import Action
from mail.envelope.local_recipient import Recipient
from mail.inbound.dsn_parser import Fate, Report
from mail.mime.header_encoding import on_wire
from mail.queue import dsn_requests
from mail.queue.delivery_results import announce
from mail.storage.message_trace import cut
from mail.text.storable_text import storable
from models.observability import metrics
from models.queue.tables import Delivery, DeliveryState
from models.runtime.environment import Turn
from models.store.columns import Picked
from models.submission.tables import Submission

NEWEST = 20  # submissions of one message that a report may be about

REPORTS = metrics.counter(
    "merganser_queue_reports",
    "Recipients of reports that came from other servers and are about mail of the account: what "
    "they say.",
    "action",
)


@dataclass
class _Sought:
    """The reported recipients by the spellings of their address and by ORCPT."""

    addresses: dict[str, Fate] = field(default_factory=dict)
    first: dict[str, Fate] = field(default_factory=dict)

    def of(self, row: Picked) -> Fate | None:
        """Return the reported result of a delivery, None if the report doesn't name it."""
        fate = self.first.get((row.orcpt or "").lower())
        return fate or next(
            (self.addresses[name] for name in names(row.recipient) if name in self.addresses), None
        )


def note(turn: Turn, to: Recipient, report: Report, *, doubtful: bool = False) -> None:
    """Update the deliveries that a report is about. A report about no submission has no effect.

    With `require_proof`, results without proof are ignored.
    """
    shown = dsn_requests.apart(report.envid or "")
    rows = [row for row in _about(turn, to, report, shown) if _came_to(to, row.envelope_from)]
    sought = _sought(report.fates)
    for row in rows:
        changed = 0
        for each in _deliveries(turn, row.id, sought):
            fate, proven = sought.of(each), _proven(turn, row, each, shown)
            if fate and (proven or not doubtful) and _write(turn, each, fate, report.by, proven):
                REPORTS.add(str(fate.action))
                changed += 1
        if changed:
            announce(turn, to.user_id, row.id, at=turn.world.now())


def _proven(turn: Turn, row: Picked, each: Picked, shown: tuple[str, str] | None) -> bool:
    """Return True if the report has the proof for this delivery."""
    if shown is None or shown[0] != row.queue_id:
        return False
    return dsn_requests.proven(turn.world, row.queue_id, each.domain, shown[1])


def _about(
    turn: Turn, to: Recipient, report: Report, shown: tuple[str, str] | None
) -> Sequence[Picked]:
    """Return the submissions of the account that the report can be about, the newest first.

    Columns: id, queue_id, envelope_from.
    """
    theirs = (
        select(col(Submission.id), col(Submission.queue_id), col(Submission.envelope_from))
        .where(col(Submission.user_id) == to.user_id)
        .order_by(col(Submission.created_at).desc(), col(Submission.id).desc())
        .limit(NEWEST)
    )
    ways: list[Any] = [col(Submission.queue_id) == shown[0]] if shown else []
    if report.envid and not shown:
        ways.append(col(Submission.envid) == storable(report.envid))
    if report.message_id:
        ways.append(col(Submission.header_id) == cut(report.message_id))
    for way in ways:
        if rows := turn.connection.execute(theirs.where(way)).all():
            return rows
    return []


def _came_to(to: Recipient, sender: str) -> bool:
    """Return True if the report was sent to the envelope sender of the submission."""
    asked = {normal(each) for each in (to.address, to.original, to.instead) if each}
    return normal(sender) in asked


def _sought(fates: Iterable[Fate]) -> _Sought:
    """Index the reported results by address and ORCPT."""
    sought = _Sought()
    for fate in fates:
        if fate.orcpt:
            sought.first.setdefault(fate.orcpt, fate)
        for address in fate.addresses:
            for name in names(address):
                sought.addresses.setdefault(name, fate)
    return sought


def names(address: str) -> set[str]:
    """Return the spellings of an address in lower case: as given, normalized, in ASCII."""
    local, _, domain = address.lower().rpartition("@")
    made = {f"{local}@{domain}", f"{local}@{normal(address).domain}"}
    with suppress(UnicodeError):  # not a valid host name: only the given spelling is compared
        made.add(on_wire(f"{local}@{domain}"))
    return made


def _deliveries(turn: Turn, key: int, sought: _Sought) -> Sequence[Picked]:
    """Return the rows of the submission's deliveries that the report names, by ID."""
    asked = (
        select(
            col(Delivery.id),
            col(Delivery.recipient),
            col(Delivery.domain),
            col(Delivery.orcpt),
            col(Delivery.state),
            col(Delivery.last_response),
            col(Delivery.report_proven),
        )
        .where(
            col(Delivery.submission_id) == key,
            or_(
                func.lower(col(Delivery.recipient)).in_(map(storable, sought.addresses)),
                func.lower(col(Delivery.orcpt)).in_(map(storable, sought.first)),
            ),
        )
        .order_by(col(Delivery.id))
    )
    return turn.connection.execute(asked).all()


def _write(turn: Turn, row: Picked, fate: Fate, by: str, proven: bool) -> bool:
    """Update a delivery from a report and return True if it changed.

    An unproven report doesn't change a delivery with a proven one.
    """
    state = _state(row, fate.action, proven=proven)
    text = storable(fate.text)
    if state is None or (row.report_proven and not proven):
        return False
    if (state, text, proven) == (row.state, row.last_response, row.report_proven):
        return False
    this = update(Delivery).where(col(Delivery.id) == row.id)
    turn.connection.execute(
        this.values(
            state=state,
            last_code=fate.code,
            last_response=text,
            reported_at=turn.world.now(),
            reported_by=storable(by) or None,
            report_proven=proven,
        )
    )
    return True


def _state(row: Picked, action: Action, *, proven: bool) -> DeliveryState | None:
    """Return the state of a delivery after a report, None if the report must not change it.

    Deliveries that wait in the queue or failed here keep their state.
    """
    doubted = row.state is DeliveryState.BOUNCED and row.report_proven is False and proven
    if row.state not in dsn_requests.THERE and not doubted:
        return None
    if action is Action.FAILED:
        return DeliveryState.BOUNCED
    if action is Action.DELIVERED:
        return DeliveryState.DELIVERED
    return DeliveryState.RELAYED if doubted else DeliveryState(row.state)
