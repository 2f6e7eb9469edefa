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
from models.store.outages import unavailable

_USUAL = frozenset(vars(logging.makeLogRecord({}))) | {"message", "taskName", "color_message"}

PIECE = select.PIPE_BUF  # bytes that a writable pipe takes at once
HELD = 1 << 20
AGAIN = 0.1  # seconds until buffered lines are tried again
PARTING = 2.0  # seconds to write buffered lines at the end of the process

LOST = metrics.counter("merganser_log_lines_lost", "Lines nobody read in time.")


def facts_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """The fields that `extra` added to a record. Hot paths pass one dictionary as `facts`."""
    attributes = vars(record)
    if "facts" in attributes:
        facts: Mapping[str, Any] = attributes["facts"]
        return facts
    return {key: value for key, value in attributes.items() if key not in _USUAL}


class OutageFilter(logging.Filter):
    """A filter that drops records whose exception is an outage of a component.

    An outage has one line at its beginning and one at its end (models/store/outage_log.py),
    with the number of dropped records.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Return True if the record is to be written; count it otherwise."""
        problem = record.exc_info[1] if record.exc_info else None
        failure = unavailable(problem) if problem else None
        if failure is None:
            return True
        OUTAGES.note_record(failure)
        return False


class JsonLines(logging.Formatter):
    """Formats a record as one line with a JSON object."""

    def __init__(self, worker: str | None = None) -> None:
        super().__init__()
        self._more = {"worker": worker} if worker else {}

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        line = {
            "at": datetime.fromtimestamp(record.created, UTC),
            "level": record.levelname.lower(),
            "from": record.name,
            "event": record.getMessage(),
            **self._more,
            **facts_of(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        try:
            return orjson.dumps(line, default=str).decode()
        except TypeError:  # half a surrogate pair, or a number beyond 64 bits
            return json.dumps(line, default=str, separators=(",", ":"))


class TextLines(logging.Formatter):
    """Formats a record as one line: time, level, event, fields. Unprintable text is escaped."""

    def __init__(self, worker: str | None = None) -> None:
        super().__init__()
        self._mark = f"[{worker}] " if worker else ""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        at = datetime.fromtimestamp(record.created).astimezone()
        event = _plain(record.getMessage())
        parts = [f"{at:%H:%M:%S}", f"{self._mark}{record.levelname.lower():7}", event]
        parts += [f"{name}={_shown(value)}" for name, value in facts_of(record).items()]
        line = " ".join(parts)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _plain(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(_shown, value))
    text = str(value)
    return text if text.isprintable() and " " not in text and text else json.dumps(text)


class Outlet(logging.Handler):
    """A log handler that writes to a file descriptor without blocking.

    Lines that can't be written are buffered up to a limit, then lost. `logging` calls `emit` with
    the lock of the handler held.
    """

    def __init__(self, fd: int) -> None:
        super().__init__()
        self._fd = fd
        self._poll = select.poll()
        self._poll.register(fd, select.POLLOUT)
        self._held: deque[bytes] = deque()
        self._size = 0
        self._lost = 0
        self._due = False

    def emit(self, record: logging.LogRecord) -> None:
        """Write a line after the buffered ones, or buffer it."""
        try:
            line = self.format(record).encode(errors="backslashreplace") + b"\n"
        except Exception:  # noqa: BLE001 - as the handlers of `logging` do
            self.handleError(record)
            return
        if self._held:
            self._drain()
        rest = line if self._held else self._write(line)
        if not rest:
            return
        if len(rest) == len(line) and self._size + len(rest) > HELD:
            self._lost += 1
            LOST.add()
            return
        self._held.append(rest)
        self._size += len(rest)
        self._look_again()

    def _write(self, line: bytes, patience: float = 0) -> bytes:
        """Write what the descriptor takes within `timeout` seconds, and return the rest."""
        try:
            while line and self._poll.poll(patience * 1000):
                line = line[os.write(self._fd, line[:PIECE]) :]
        except BlockingIOError:
            return line
        except OSError:  # the reader is gone or the disk is full, so it can't be logged
            LOST.add()
            return b""
        return line

    def _drain(self, until: float = 0) -> None:
        """Write buffered lines without blocking, or until a deadline of the monotonic clock."""
        while self._held:
            patience = max(0.0, until - time.monotonic()) if until else 0
            rest = self._write(self._held[0], patience)
            self._size -= len(self._held[0]) - len(rest)
            if rest:
                self._held[0] = rest
                return
            self._held.popleft()
        if self._lost:
            lost, self._lost = self._lost, 0
            facts = {"levelno": logging.WARNING, "levelname": "WARNING", "facts": {"lost": lost}}
            event = {"name": __name__, "msg": "lines of the log were lost", **facts}
            self.emit(logging.makeLogRecord(event))

    def _look_again(self) -> None:
        """Schedule a retry on the event loop. Without a loop, the next line retries."""
        if not self._due:
            with contextlib.suppress(RuntimeError):
                asyncio.get_running_loop().call_later(AGAIN, self._resume)
                self._due = True

    def _resume(self) -> None:
        self._due = False
        with self.lock or contextlib.nullcontext():
            self._drain()
            if self._held:
                self._look_again()

    def close(self) -> None:
        """Write the buffered lines that are read within CLOSE_TIMEOUT."""
        with self.lock or contextlib.nullcontext():
            self._drain(time.monotonic() + PARTING)
        super().close()


def set_up(level: str, form: str = "auto", worker: str | None = None) -> None:
    """Send all logs of the process to stderr.

    The format is `json`, `text` or `auto`: text if stderr is a terminal. `process_name` is set if
    the server has several processes.
    """
    is_for_people = form == "text" or (
        form == "auto" and sys.stderr is not None and sys.stderr.isatty()
    )
    handler = _handler()
    handler.addFilter(OutageFilter())
    handler.setFormatter(TextLines(worker) if is_for_people else JsonLines(worker))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # no format prints these, and computing them takes time
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.getLogger("mail.log").setLevel(
        logging.WARNING
    )  # aiosmtpd logs each line, with passwords
    for library in ("alembic", "uvicorn", "asyncio"):  # the server logs the same events
        logging.getLogger(library).setLevel(logging.WARNING)


def _handler() -> logging.Handler:
    """Create the handler for stderr, or one that drops records if there is no stderr."""
    try:
        return Outlet(sys.stderr.fileno())
    except (AttributeError, OSError):  # stderr is missing or has no descriptor, so it can't block
        return logging.StreamHandler() if sys.stderr else logging.NullHandler()
