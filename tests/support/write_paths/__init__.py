"""The ways of writing to the database other than mutations, with the objects that they need."""

from tests.support.write_paths import (
    delivery_write_paths,
    identity_write_paths,
    task_write_paths,
    worker_write_paths,
)
from tests.support.write_paths.write_path import (
    MESSAGES_PER_ACCOUNT,
    WRITE_PATHS,
    WritePathContext,
    update_rows,
)

__all__ = [
    "MESSAGES_PER_ACCOUNT",
    "WRITE_PATHS",
    "WritePathContext",
    "delivery_write_paths",
    "identity_write_paths",
    "task_write_paths",
    "update_rows",
    "worker_write_paths",
]
