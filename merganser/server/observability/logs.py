"""Logging to stderr as JSON lines or as text: an event with its fields.

Writing never blocks. If stderr is read too slowly, lines are lost and their number is logged.
"""

import asyncio
import contextlib
import json
import logging
import os
import select
import sys
import time
from collections import deque
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

import orjson

from models.observability import metrics
from models.store.outage_log import OUTAGES
from models.store.outages import storage_failure

_RECORD_ATTRIBUTES = frozenset(vars(logging.makeLogRecord({}))) | {
    "message",
    "taskName",
    "color_message",
}

MAX_ATOMIC_WRITE = select.PIPE_BUF  # bytes that a writable pipe takes at once
MAX_BUFFERED_BYTES = 1 << 20
RETRY_DELAY = 0.1  # seconds until buffered lines are tried again
CLOSE_TIMEOUT = 2.0  # seconds to write buffered lines at the end of the process

LINES_LOST = metrics.counter(
    "merganser_log_lines_lost", "Log lines that were lost, since nobody read them in time."
)


def extra_fields_of_log_record(record: logging.LogRecord) -> Mapping[str, Any]:
    """The fields that `extra` added to a record. Hot paths pass one dictionary as `facts`."""
    attributes = vars(record)
    if "facts" in attributes:
        facts: Mapping[str, Any] = attributes["facts"]
        return facts
    return {key: value for key, value in attributes.items() if key not in _RECORD_ATTRIBUTES}


class OutageFilter(logging.Filter):
    """A filter that drops records with the exception of an outage of a component.

    An outage has one line at its beginning and one at its end (models/store/outage_log.py),
    with the number of dropped records.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if the record is to be written; count it otherwise."""
        problem = record.exc_info[1] if record.exc_info else None
        failure = storage_failure(problem) if problem else None
        if failure is None:
            return True
        OUTAGES.note_suppressed_record(failure)
        return False


class JsonLogFormatter(logging.Formatter):
    """Formats a record as one line with a JSON object."""

    def __init__(self, process_name: str | None = None) -> None:
        super().__init__()
        self._common_fields = {"worker": process_name} if process_name else {}

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        line = {
            "at": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "from": record.name,
            "event": record.getMessage(),
            **self._common_fields,
            **extra_fields_of_log_record(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # half a surrogate pair, or a number beyond 64 bits
            return json.dumps(line, default=str, separators=(",", ":"))


class TextLogFormatter(logging.Formatter):
    """Formats a record as a line with time, level, event, and extra fields as name=value.

    A traceback follows, indented. Unprintable text is escaped in both.
    """

    def __init__(self, process_name: str | None = None) -> None:
        super().__init__()
        self._process_prefix = f"[{process_name}] " if process_name else ""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        at = datetime.fromtimestamp(record.created).astimezone()
        event = _escape_unprintable(record.getMessage())
        parts = [f"{at:%H:%M:%S}", f"{self._process_prefix}{record.levelname.lower():7}", event]
        parts += [
            f"{name}={_field_text(value)}"
            for name, value in extra_fields_of_log_record(record).items()
        ]
        line = " ".join(parts)
        if not record.exc_info:
            return line
        # the text of an error can have control characters, but must not forge lines of the log
        traceback_lines = self.formatException(record.exc_info).splitlines()
        return "\n".join([line, *(f"    {_escape_unprintable(text)}" for text in traceback_lines)])


def _escape_unprintable(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)


def _field_text(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(_field_text, value))
    text = str(value)
    return text if text.isprintable() and " " not in text and text else json.dumps(text)


class NonblockingLogHandler(logging.Handler):
    """A log handler that writes to a file descriptor without blocking.

    Lines that can't be written are buffered up to a limit, then lost. `logging` calls `emit` with
    the lock of the handler held.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._buffered_lines: deque[bytes] = deque()
        self._buffered_bytes = 0
        self._lost_line_count = 0
        self._is_retry_scheduled = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line after the buffered ones, or buffer it."""
        try:
            line = self.format(record).encode(errors="backslashreplace") + b"\n"
        except Exception:  # noqa: BLE001 - as the handlers of `logging` do
            self.handleError(record)
            return
        if self._buffered_lines:
            self._write_buffered()
        unwritten = line if self._buffered_lines else self._write_available_and_return_rest(line)
        if not unwritten:
            return
        if (
            len(unwritten) == len(line)
            and self._buffered_bytes + len(unwritten) > MAX_BUFFERED_BYTES
        ):
            self._lost_line_count += 1
            LINES_LOST.add()
            return
        self._buffered_lines.append(unwritten)
        self._buffered_bytes += len(unwritten)
        self._schedule_retry()

    def _write_available_and_return_rest(self, line: bytes, timeout: float = 0) -> bytes:
        """Write what the descriptor takes within `timeout` seconds, and return the rest."""
        try:
            while line and self._poll.poll(timeout * 1000):
                line = line[os.write(self._fd, line[:MAX_ATOMIC_WRITE]) :]
        except BlockingIOError:
            return line
        except OSError:  # the reader is gone or the disk is full, so it can't be logged
            LINES_LOST.add()
            return b""
        return line

    def _write_buffered(self, deadline: float = 0) -> None:
        """Write buffered lines without blocking, or until a deadline of the monotonic clock."""
        while self._buffered_lines:
            patience = max(0.0, deadline - time.monotonic()) if deadline else 0
            unwritten = self._write_available_and_return_rest(self._buffered_lines[0], patience)
            self._buffered_bytes -= len(self._buffered_lines[0]) - len(unwritten)
            if unwritten:
                self._buffered_lines[0] = unwritten
                return
            self._buffered_lines.popleft()
        if self._lost_line_count:
            lost_count, self._lost_line_count = self._lost_line_count, 0
            facts = {
                "levelno": logging.WARNING,
                "levelname": "WARNING",
                "facts": {"lost": lost_count},
            }
            event = {"name": __name__, "msg": "Log lines were lost", **facts}
            self.emit(logging.makeLogRecord(event))

    def _schedule_retry(self) -> None:
        """Schedule a retry on the event loop. Without a loop, the next line retries."""
        if not self._is_retry_scheduled:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().call_later(RETRY_DELAY, self._retry_buffered_writes)
                self._is_retry_scheduled = True

    def _retry_buffered_writes(self) -> None:
        self._is_retry_scheduled = False
        with self.lock or contextlib.nullcontext():
            self._write_buffered()
            if self._buffered_lines:
                self._schedule_retry()

    def close(self) -> None:
        """Write the buffered lines that are read within CLOSE_TIMEOUT."""
        with self.lock or contextlib.nullcontext():
            self._write_buffered(time.monotonic() + CLOSE_TIMEOUT)
        super().close()


def configure_logging(
    level: str, log_format: str = "auto", process_name: str | None = None
) -> None:
    """Send all logs of the process to stderr.

    The format is `json`, `text` or `auto`: text if stderr is a terminal. `process_name` is set if
    the server has several processes.
    """
    is_for_people = log_format == "text" or (
        log_format == "auto" and sys.stderr is not None and sys.stderr.isatty()
    )
    handler = _create_stderr_handler()
    handler.addFilter(OutageFilter())
    handler.setLevel(level)  # the log store can keep more (merganser/server/observability)
    handler.setFormatter(
        TextLogFormatter(process_name) if is_for_people else JsonLogFormatter(process_name)
    )
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # no format prints these, and computing them takes time
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    # aiosmtpd logs each line, with passwords
    logging.getLogger("mail.log").setLevel(logging.WARNING)
    for library in ("alembic", "uvicorn", "asyncio"):  # the server logs the same events
        logging.getLogger(library).setLevel(logging.WARNING)


def _create_stderr_handler() -> logging.Handler:
    """Create the handler for stderr, or one that drops records if there is no stderr."""
    try:
        return NonblockingLogHandler(sys.stderr.fileno())
    except (AttributeError, OSError):  # stderr is missing or has no descriptor, so it can't block
        return logging.StreamHandler() if sys.stderr else logging.NullHandler()
