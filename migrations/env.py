"""Alembic, on either store: `merganser init` and `merganser serve` run this."""

import asyncio
import os
import warnings
from typing import Any

from alembic import context
from sqlalchemy import Connection
from sqlmodel import SQLModel

import models.addresses.forward_target_keys
import models.addresses.rewrites
import models.addresses.tables
import models.admin.audit_log
import models.admin.key_values
import models.admin.settings
import models.admin.tasks
import models.admin.trusted_documents
import models.auth.application_passwords
import models.auth.credential_changes
import models.auth.credentials
import models.auth.second_factors
import models.auth.security_log
import models.autoreply
import models.certificates
import models.cluster.nodes
import models.connectors
import models.domains.dkim_keys
import models.domains.tables
import models.events.incarnation
import models.events.journal
import models.files.blobs
import models.filters.sieve_scripts
import models.filters.tables
import models.identity_providers
import models.mailboxes.tables
import models.messages.keywords
import models.messages.labels
import models.messages.sort_keys
import models.messages.tables
import models.notifications.push_channels
import models.notifications.webhooks
import models.oauth.tables
import models.queue.rate_limits
import models.queue.tables
import models.resources.tables
import models.routing.mta_sts
import models.routing.tables
import models.runtime.idempotency
import models.search.saved_searches
import models.spam.greylist
import models.spam.quarantine
import models.spam.sender_rules
import models.spam.training
import models.store.facts
import models.submission.compose_requests
import models.submission.identities
import models.submission.tables
import models.throttling.tables
import models.users.tables  # noqa: F401  each table must be known to the metadata
from models.store import compatible_revisions
from models.store.database import Database

UNIQUE = ("uq_mailboxes_user_id_path", "uq_mailboxes_path")  # the one here, the other there


def _ours(_object: Any, name: str | None, kind: str, _reflected: bool, _compare: Any) -> bool:
    """Return False for the text index, which models/search/text_index.py creates."""
    if name in UNIQUE:
        return False
    return not (kind in ("table", "index") and name and name.startswith(("search_", "ix_search_")))


def _record_migration(ctx: Any, step: Any, *_others: Any, **_names: Any) -> None:
    """Store which older code can use the database after this migration."""
    if step.is_stamp:  # only of tests: it runs no migration
        return
    compatible_revisions.record_migration(
        ctx.connection,
        step.up_revision_id,
        next(iter(step.down_revision_ids), ""),
        expand_only=getattr(step.up_revision.module, "expand_only", False),
    )


def migrate(connection: Connection) -> None:
    context.configure(
        connection=connection,
        target_metadata=SQLModel.metadata,
        render_as_batch=True,  # SQLite cannot alter most things: copy the table and swap
        compare_type=True,
        include_object=_ours,
        on_version_apply=_record_migration,
    )
    with context.begin_transaction(), warnings.catch_warnings():
        # an index of an expression is the store's own, as `_ours` says
        warnings.filterwarnings("ignore", "Skipped unsupported reflection of expression-based")
        context.run_migrations()


async def run() -> None:
    database = Database(os.environ["MERGANSER_DATABASE_URL"])
    async with database.engine.begin() as connection:
        await connection.run_sync(migrate)
    await database.close()


if (lent := context.config.attributes.get("connection")) is not None:
    migrate(lent)  # whoever lends it has a loop running already
else:
    asyncio.run(run())
