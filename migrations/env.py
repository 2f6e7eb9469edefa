"""Alembic, on either store: `merganser init` and `merganser serve` run this."""

import asyncio
import os
import warnings
from typing import Any

from alembic import context
from sqlalchemy import Connection
from sqlmodel import SQLModel

import models.addresses
import models.adminlog
import models.apppasswords
import models.auth
import models.authlog
import models.autoreply
import models.blobs
import models.certificates
import models.compose
import models.connectors
import models.credential_changes
import models.dkim
import models.documents
import models.domains
import models.filters
import models.greylist
import models.identities
import models.journal
import models.keyvalue
import models.labels
import models.lessons
import models.mailboxes
import models.messages
import models.notifications
import models.quarantine
import models.queue
import models.rates
import models.replays
import models.rewrites
import models.routing
import models.savedsearches
import models.senderrules
import models.settings
import models.sieve
import models.store.facts
import models.store.incarnation
import models.sts
import models.submission
import models.tasks
import models.twofactor
import models.users
import models.webhooks  # noqa: F401  each table must be known to the metadata
from models.database import Database

UNIQUE = ("uq_mailboxes_user_id_path", "uq_mailboxes_path")  # the one here, the other there


def _ours(_object: Any, name: str | None, kind: str, _reflected: bool, _compare: Any) -> bool:
    """The text index is the store's own: models/searchindex.py, and no table of the models."""
    if name in UNIQUE:
        return False
    return not (kind in ("table", "index") and name and name.startswith(("search_", "ix_search_")))


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        render_as_batch=True,  # SQLite cannot alter most things: copy the table and swap
        compare_type=True,
        include_object=_ours,
    )
    with context.begin_transaction(), warnings.catch_warnings():
        # an index of an expression is the store's own, as `_ours` says
        warnings.filterwarnings("ignore", "Skipped unsupported reflection of expression-based")
        context.run_migrations()


async def run() -> None:
    database = Database(os.environ["MERGANSER_STORE"])
    async with database.engine.begin() as connection:
        await connection.run_sync(migrate)
    await database.close()


if (lent := context.config.attributes.get("connection")) is not None:
    migrate(lent)  # whoever lends it has a loop running already
else:
    asyncio.run(run())
