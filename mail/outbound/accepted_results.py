"""A file with the results that other servers gave and the database does not have yet.

The write of a result waits for other transactions and for the disk. A process that is killed in
that time has sent messages that it would send again. So each positive result is appended to a file
first, without a wait for the disk: a killed process loses no bytes of it. The next process of the
server records these results before it frees the leases of the former one.
"""

import fcntl
import logging
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import orjson

from mail.envelope.delivery_jobs import DeliveryResult
from mail.queue import message_body, recipient_leases
from mail.queue.delivery_results import record_results_and_report
from mail.queue.dsn_requests import DELIVERED_STATES
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment

log = logging.getLogger(__name__)

FILE_NAME = "accepted-results"  # in the data folder
MAX_FILE_BYTES = 1 << 20  # a longer file is written again, without recorded results

ResultsByDeliveryId = Mapping[int, DeliveryResult]


class AcceptedResults:
    """The file of the queue worker of one process. Without a path nothing is kept.

    A file that can't be written is not used: then the results are only in the database.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._path = path
        self._descriptor = _open_and_lock_or_none(path) if path else None
        self._size = 0
        self._line_by_delivery_id: dict[int, bytes] = {}  # of results that are not recorded

    def add(self, lease: int, results: ResultsByDeliveryId) -> None:
        """Append the positive results of recipients under a lease to the file.

        Other results are ignored.
        """
        accepted = {
            delivery_id: result
            for delivery_id, result in results.items()
            if result.state in DELIVERED_STATES
        }
        if self._descriptor is None or not accepted:
            return
        line = _line_from_results(lease, accepted)
        self._line_by_delivery_id |= dict.fromkeys(accepted, line)
        self._write(line)

    def remove(self, results: ResultsByDeliveryId) -> None:
        """Forget results that the database has."""
        for delivery_id in results:
            self._line_by_delivery_id.pop(delivery_id, None)
        if self._descriptor is not None and self._size > MAX_FILE_BYTES:
            with suppress(OSError):
                os.ftruncate(self._descriptor, 0)
            self._size = 0
            self._write(b"".join(dict.fromkeys(self._line_by_delivery_id.values())))

    def _write(self, data: bytes) -> None:
        if self._descriptor is not None:
            with suppress(OSError):  # the disk is full
                self._size += os.write(self._descriptor, data)

    def close(self) -> None:
        """Close the file, and remove it if the database has all results."""
        if self._descriptor is not None and self._path is not None:
            if not self._line_by_delivery_id:
                self._path.unlink(missing_ok=True)
            os.close(self._descriptor)
            self._descriptor = None


def _open_and_lock_or_none(
    path: Path, *, flags: int = os.O_RDWR | os.O_CREAT | os.O_APPEND
) -> int | None:
    """Open a file that no other process uses; None if one does, or if it can't be opened."""
    try:
        descriptor = os.open(path, flags | os.O_CLOEXEC, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        return None
    return descriptor


def _read_all(descriptor: int) -> bytes:
    return os.pread(descriptor, os.fstat(descriptor).st_size, 0)


def _line_from_results(lease: int, results: ResultsByDeliveryId) -> bytes:
    """Return the line of JSON that records the results of a lease."""
    rows = [
        [
            delivery_id, result.state, result.reply_code, result.reply_text, result.mx,
            result.tls_description, result.is_reported_remotely,
        ]
        for delivery_id, result in results.items()
    ]  # fmt: skip
    return orjson.dumps([lease, rows], option=orjson.OPT_APPEND_NEWLINE)


def _results_by_lease(content: bytes) -> Iterator[tuple[int, ResultsByDeliveryId]]:
    """Yield lease and results of each complete line."""
    for line in content.splitlines():
        with suppress(ValueError, TypeError):  # a full disk can cut a line
            lease, rows = orjson.loads(line)
            yield (
                lease,
                {
                    delivery_id: DeliveryResult(
                        DeliveryState(state), code, text, mx, tls, is_reported_remotely=is_reported
                    )
                    for delivery_id, state, code, text, mx, tls, is_reported in rows
                },
            )


async def record_accepted_results(environment: Environment, path: Path) -> None:
    """Record the results that a killed process of this server has left, and remove the file.

    Results of recipients whose lease has ended are skipped.
    """
    descriptor = _open_and_lock_or_none(path, flags=os.O_RDONLY)
    if descriptor is None:
        return
    try:
        leased_ids = await recipient_leases.load_leased_delivery_ids(environment)
        count = 0
        for lease, results in _results_by_lease(_read_all(descriptor)):
            if not leased_ids.get(lease, frozenset()).isdisjoint(results):
                count += await _record_results_of_lease(environment, lease, results)
        os.unlink(path)  # noqa: PTH108 - as short as a close
    finally:
        os.close(descriptor)
    if count:
        log.info("Recorded results of the former process", extra={"recipients": count})


async def _record_results_of_lease(
    environment: Environment, lease: int, results: ResultsByDeliveryId
) -> int:
    """Record results of recipients that still have this lease; return their number."""
    jobs = await environment.run_transaction(
        lambda transaction: recipient_leases.load_jobs_by_lease(transaction, lease)
    )
    count = 0
    for job in jobs:
        recipients = [recipient for recipient in job.recipients if recipient.delivery_id in results]
        if recipients:
            await record_results_and_report(
                environment,
                replace(job, recipients=recipients),
                {recipient.delivery_id: results[recipient.delivery_id] for recipient in recipients},
                await message_body.read_beginning_or_empty(environment, job),
            )
            count += len(recipients)
    return count
