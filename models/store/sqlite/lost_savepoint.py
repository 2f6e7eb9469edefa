"""Errors of SQLite after a transaction that SQLite has rolled back.

It does so when the disk is full or fails (https://www.sqlite.org/lang_transaction.html, section 3).
Then there is no savepoint to roll back to, and that error would hide the first one.
"""

from sqlalchemy import Engine, event
from sqlalchemy.engine import ExceptionContext

from models.store.outages import StoreUnavailable, unavailable

LOST = "no such savepoint"
FAILURE = "merganser_failure"  # in the `info` of a connection


def raise_first_failure(engine: Engine) -> None:
    """Let statements that miss their savepoint raise the failure that ended the transaction."""

    @event.listens_for(engine, "handle_error")
    def replace(context: ExceptionContext) -> None:
        if context.connection is None:
            return
        info, problem = context.connection.info, context.original_exception
        if LOST in str(problem):
            failure: StoreUnavailable = info.get(FAILURE) or StoreUnavailable()
            raise failure from failure.__cause__ or problem
        if failed := unavailable(problem):
            failed.__cause__ = problem
            info[FAILURE] = failed
