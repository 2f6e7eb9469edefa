"""Logs: an event in words, and its facts as fields; JSON lines, or text for people.

Nothing here waits. Whoever reads our stderr too slowly loses lines, and is told how many.
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

PIECE = select.PIPE_BUF  # bytes that a pipe takes at once where it takes anything
HELD = 1 << 20  # bytes we hold for somebody who does not read
AGAIN = 0.1  # seconds until we look whether somebody reads again
PARTING = 2.0  # seconds for what is held at our end

LOST = metrics.counter("merganser_log_lines_lost", "Lines nobody read in time.")


def facts_of(record: logging.LogRecord) -> Mapping[str, Any]:
    """What `extra` gave; a hot path gives one dict, as `facts`."""
    given = vars(record)
    if "facts" in given:
        facts: Mapping[str, Any] = given["facts"]
        return facts
    return {key: value for key, value in given.items() if key not in _USUAL}


class OutageFilter(logging.Filter):
    """Leaves out records whose exception is an outage of a component.

    The outage itself is one line at its beginning and one at its end (models/store/outage_log.py),
    with the number of records that were left out.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Say whether to write a record."""
        problem = record.exc_info[1] if record.exc_info else None
        failure = unavailable(problem) if problem else None
        if failure is None:
            return True
        OUTAGES.note_record(failure)
        return False


class JsonLines(logging.Formatter):
    """One JSON object a line."""

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
    """One line for people: time, level, event, facts. What is odd in a fact is escaped."""

    def __init__(self, worker: str | None = None) -> None:
        super().__init__()
        self._mark = f"[{worker}] " if worker else ""

    def format(self, record: logging.LogRecord) -> str:  # noqa: D102
        at = datetime.fromtimestamp(record.created).astimezone()
        event = _plain(record.getMessage())
        words = [f"{at:%H:%M:%S}", f"{self._mark}{record.levelname.lower():7}", event]
        words += [f"{name}={_shown(value)}" for name, value in facts_of(record).items()]
        line = " ".join(words)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


def _plain(text: str) -> str:
    return text if text.isprintable() else json.dumps(text)


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ",".join(map(_shown, value))
    text = str(value)
    return text if text.isprintable() and " " not in text and text else json.dumps(text)


class Outlet(logging.Handler):
    """Writes lines to a file descriptor as long as it takes them at once, and never waits.

    What it does not take is held, and then lost. Logging calls us locked.
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
        """Write a line, behind those that are held."""
        try:
            line = self.format(record).encode(errors="backslashreplace") + b"\n"
        except Exception:  # noqa: BLE001 - logging's own way with what cannot be shown
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
        """Write what is taken at once; returns the rest."""
        try:
            while line and self._poll.poll(patience * 1000):
                line = line[os.write(self._fd, line[:PIECE]) :]
        except BlockingIOError:
            return line
        except OSError:  # nobody reads any more, or the disk is full: there is no one to tell
            LOST.add()
            return b""
        return line

    def _drain(self, until: float = 0) -> None:
        """Write what is held; `until` a time of the monotonic clock we wait for who reads."""
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
        """On the loop, soon; without one the next line looks."""
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
        """Write what is held, as far as somebody reads it soon."""
        with self.lock or contextlib.nullcontext():
            self._drain(time.monotonic() + PARTING)
        super().close()


def set_up(level: str, form: str = "auto", worker: str | None = None) -> None:
    """Send all logs of the process to stderr: as `json`, as `text`, or as suits what it is.

    Where there are several processes `worker` is the name of this one.
    """
    people = form == "text" or (form == "auto" and sys.stderr is not None and sys.stderr.isatty())
    handler = _handler()
    handler.addFilter(OutageFilter())
    handler.setFormatter(TextLines(worker) if people else JsonLines(worker))
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # nobody is told these, and looking them up takes time
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    logging.getLogger("mail.log").setLevel(logging.WARNING)  # aiosmtpd: every line, secrets and all
    for theirs in ("alembic", "uvicorn", "asyncio"):  # what they do we say in our own words
        logging.getLogger(theirs).setLevel(logging.WARNING)


def _handler() -> logging.Handler:
    try:
        return Outlet(sys.stderr.fileno())
    except (AttributeError, OSError):  # there is none, or it is no file: then it does not block
        return logging.StreamHandler() if sys.stderr else logging.NullHandler()
