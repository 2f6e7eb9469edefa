"""Write the log records of this process to the log store, beside stderr."""

import logging
import traceback
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from sqlalchemy import make_url

from merganser.server.observability.logs import extra_fields_of_log_record
from merganser.settings.settings import Settings
from models.logs.entries import LogComponent, LogLevel, NewLogEntry
from models.logs.sqlite_store import SqliteLogStore
from models.logs.store import LogLimits, LogStore
from models.runtime.environment import Environment
from models.store.database import Database
from models.store.outages import storage_failure
from models.store.postgres.address import is_postgres

FILE_NAME = "logs.sqlite3"
PROJECT_LOGGERS = ("graph", "mail", "merganser", "models", "resolvers")
# By the beginning of the logger's name; the longest one counts. Other loggers have no entries: a
# library can log anything.
_COMPONENTS_BY_PREFIX: Mapping[str, LogComponent | None] = {
    "graph.execution": LogComponent.API,
    "graph.http": LogComponent.WEB,
    "graph.http.health": None,  # merganser/server/observability/health_entries.py
    "graph.oauth": LogComponent.AUTH,
    "graph.subscriptions": LogComponent.API,
    "mail": LogComponent.MTA,
    "mail.log": None,  # of aiosmtpd, which logs each line
    "mail.maintenance": LogComponent.STORE,
    "mail.scanners": LogComponent.SPAM,
    "mail.scanners.circuit_breaker": LogComponent.HEALTH,
    "mail.search": LogComponent.STORE,
    "mail.storage": LogComponent.STORE,
    "mail.throttling": LogComponent.THROTTLE,
    "merganser": LogComponent.CLUSTER,
    "merganser.server.acme_http": LogComponent.ACME,
    "models": LogComponent.STORE,
    "models.events": LogComponent.CLUSTER,
    "models.logs": None,  # a failure of the log store would report itself
    "models.runtime": LogComponent.CLUSTER,
    "models.store.outage_log": LogComponent.HEALTH,
    "resolvers": LogComponent.STORE,
    "resolvers.admin": LogComponent.TASK,
    "resolvers.auth": LogComponent.AUTH,
    "resolvers.certificates": LogComponent.ACME,
    "resolvers.cluster": LogComponent.CLUSTER,
    "resolvers.connectors": LogComponent.CONNECTOR,
    "resolvers.filters": LogComponent.TASK,
    "resolvers.notifications": LogComponent.WEBHOOK,
    "resolvers.oauth": LogComponent.AUTH,
    "resolvers.submission": LogComponent.MTA,
    "resolvers.throttling": LogComponent.THROTTLE,
}
_THROTTLE_EVENTS = frozenset({"Sign-in failed", "Credential refused"})
_QUEUE_ID_FIELDS = ("queue", "id")
OPERATION_LOGGER = "graph.execution.telemetry"
OPERATION_ENTRY_SIZE = 2000  # bytes in memory: at most 14 short fields


def create_log_store(settings: Settings, database: Database) -> LogStore:
    """Create the log store beside the database: an SQLite file, or tables in PostgreSQL.

    Nothing is opened before its first use.
    """
    if is_postgres(settings.database_url):
        from models.logs.postgres_store import PostgresLogStore  # noqa: PLC0415 - needs asyncpg

        return PostgresLogStore(settings.database_url, database)
    mail_database = Path(str(make_url(settings.database_url).database))
    return SqliteLogStore(settings.data / FILE_NAME, mail_database)


@contextmanager
def record_logs_in_log_store(environment: Environment) -> Generator[None]:
    """Record the entries and log records of this process in its log store.

    The recorder itself is stopped when the environment is closed, after the last entries.
    """

    def read_limits() -> LogLimits:
        options = environment.options
        return LogLimits(options.logs_retention, options.logs_max_size, environment.now())

    environment.logs.start(lambda: environment.options.logs_levels, read_limits)
    handler = LogStoreHandler(environment)
    root = logging.getLogger()
    levels = {name: logging.getLogger(name).level for name in PROJECT_LOGGERS}
    root.addHandler(handler)
    for name in PROJECT_LOGGERS:  # the handlers decide, each by its own setting
        logging.getLogger(name).setLevel(logging.DEBUG)
    try:
        yield
    finally:
        root.removeHandler(handler)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)


class LogStoreHandler(logging.Handler):
    """A log handler that records entries. It never blocks."""

    def __init__(self, environment: Environment) -> None:
        super().__init__()
        self._environment = environment

    def handle(self, record: logging.LogRecord) -> bool:
        """Record an entry without the lock of the handler: the queue of the recorder needs none."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Record an entry for a record of this project."""
        try:
            component = component_of_logger(record.name)
            if record.msg in _THROTTLE_EVENTS:
                component = LogComponent.THROTTLE
            level = _level_of_record(record)
            if component is None or not self._environment.logs.is_recorded(component, level):
                return
            if (problem := _exception_of_record(record)) and storage_failure(problem):
                return  # an outage has one record at its beginning and one at its end
            logs, at = self._environment.logs, self._environment.now()
            if record.name == OPERATION_LOGGER:  # frequent, and its fields are never changed
                entries = _iter_entry_of_record(record, at, component, level)
                logs.record_unbuilt(entries, 1, OPERATION_ENTRY_SIZE)
            else:
                logs.enqueue_or_drop_entry(entry_of_record(record, at, component, level))
        except Exception:  # noqa: BLE001 - as the handlers of `logging` do
            self.handleError(record)


@lru_cache(maxsize=500)
def component_of_logger(name: str) -> LogComponent | None:
    """Return the component of a logger; None if its records have no entries."""
    parts = name.split(".")
    for count in range(len(parts), 0, -1):
        prefix = ".".join(parts[:count])
        if prefix in _COMPONENTS_BY_PREFIX:
            return _COMPONENTS_BY_PREFIX[prefix]
    return None


def entry_of_record(
    record: logging.LogRecord, at: datetime, component: LogComponent, level: LogLevel
) -> NewLogEntry:
    """Return the entry of a log record, without the text of its exception.

    The text of an exception can contain anything, such as values of a statement.
    """
    fields = dict(extra_fields_of_log_record(record))
    message = record.getMessage()
    if record.name == OPERATION_LOGGER:
        message = _operation_text(fields)
        fields["type"] = "operation"
        fields["ip"] = getattr(record, "client_ip", None)
    user_id = fields.pop("user", None)
    queue_id = None
    for name in _QUEUE_ID_FIELDS if record.name.startswith("mail.") else ():
        if isinstance(fields.get(name), str):
            queue_id = fields.pop(name)
            break
    if problem := _exception_of_record(record):
        fields["error"] = type(problem).__name__
        fields["place"] = _place_of_exception(problem)
    return NewLogEntry(
        at,
        component,
        level,
        record.name,
        message,
        fields,
        user_id=user_id if isinstance(user_id, int) and user_id else None,
        queue_id=queue_id,
        correlation_id=fields.pop("request_id", None) or None,
    )


def _iter_entry_of_record(
    record: logging.LogRecord, at: datetime, component: LogComponent, level: LogLevel
) -> Generator[NewLogEntry]:
    """Yield the entry of a log record, which is built when it is read."""
    yield entry_of_record(record, at, component, level)


def _operation_text(fields: Mapping[str, Any]) -> str:
    return f"{fields['kind']} {fields['operation'] or 'without a name'}: {fields['status']}"


def _level_of_record(record: logging.LogRecord) -> LogLevel:
    if record.levelno >= logging.ERROR:
        return LogLevel.ERROR
    if record.levelno >= logging.WARNING:
        return LogLevel.WARNING
    return LogLevel.INFO if record.levelno >= logging.INFO else LogLevel.DEBUG


def _exception_of_record(record: logging.LogRecord) -> BaseException | None:
    return record.exc_info[1] if record.exc_info else None


def _place_of_exception(problem: BaseException) -> str | None:
    """Return module, line and function that raised an exception; None if it was not raised."""
    frames = traceback.extract_tb(problem.__traceback__)
    if not frames:
        return None
    last = frames[-1]
    return f"{Path(last.filename).name}:{last.lineno} {last.name}"
