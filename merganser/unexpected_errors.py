"""The sentence for an exception that a command did not expect."""

import logging

from sqlalchemy.exc import DBAPIError

from models.store.outages import storage_failure


def describe_error_and_log_if_bug(error: Exception) -> str:
    """Describe an unexpected error in one sentence.

    An error that is not of the database or the system is a bug: its traceback is logged.
    """
    if failure := storage_failure(error):
        return f"The command failed: {failure.message}"
    first_line = next(iter(str(getattr(error, "orig", error)).strip().splitlines()), "")
    if isinstance(error, DBAPIError | OSError):
        return f"The command failed: {first_line or type(error).__name__}."
    logging.getLogger("merganser").error("Command failed with an internal error", exc_info=error)
    return f"Internal error, please report it: {type(error).__name__} {first_line}"
