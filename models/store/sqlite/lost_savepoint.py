"""Errors of SQLite after a transaction that SQLite has rolled back.

It does so when the disk is full or fails (https://www.sqlite.org/lang_transaction.html, section 3).
Then there is no savepoint to roll back to, and that error would hide the first one.
"""

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

from models.store.outages import StorageUnavailable, storage_failure

LOST_SAVEPOINT_MESSAGE = "no such savepoint"
FAILURE_KEY = "merganser_failure"  # in the `info` of a connection


def make_engine_raise_cause_of_lost_savepoints(engine: Engine) -> None:
    """Let statements that miss their savepoint raise the failure that ended the transaction."""

    @event.listens_for(engine, "handle_error")
    def raise_cause_of_lost_savepoint(context: ExceptionContext) -> None:
        if context.connection is None:
            return
        info, problem = context.connection.info, context.original_exception
        if LOST_SAVEPOINT_MESSAGE in str(problem):
            failure: StorageUnavailable = info.get(FAILURE_KEY) or StorageUnavailable()
            raise failure from failure.__cause__ or problem
        if failed := storage_failure(problem):
            failed.__cause__ = problem
            info[FAILURE_KEY] = failed
