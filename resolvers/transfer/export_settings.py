"""Read the settings of an account for its export."""

from typing import Any

from sqlalchemy import select
from sqlmodel import col

from models.admin.key_values import KeyValueEntry
from models.mailboxes.tables import Mailbox, MailboxSubscription
from models.spam.sender_rules import SenderRule, scope_of_user
from models.store.columns import select_columns
from models.submission.identities import Identity
from models.users.tables import User
from resolvers.autoreply import autoreplies
from resolvers.connectors import transfer
from resolvers.context import Context
from resolvers.filters import sieve_scripts
from resolvers.filters import transfer as filter_transfer
from resolvers.messages import labels
from resolvers.search import saved_searches
from resolvers.search.query_printer import query_from_fields
from resolvers.transfer import scheduled_messages

SETTING_COLUMNS = (
    *("name", "language", "retention", "openpgp_public_key", "encrypt_messages"),
    *("spam_level", "junk_score", "reject_score", "quarantine_notification"),
    *("require_inbound_tls", "require_outbound_tls", "upload_sent_messages"),
    *("forward_to", "encrypt_forwarded", "subaddress_action", "public_metadata"),
)


async def load_settings_of_viewer(ctx: Context, passphrase: str | None) -> dict[str, Any]:
    """Return the settings of the viewer for the account record.

    They never contain the user's password. A passphrase encrypts the passwords of connectors.
    """
    user_id, now = ctx.viewer.user_id, ctx.environment.now()
    statement = select(*select_columns(User, {*SETTING_COLUMNS, "username"})).where(
        col(User.id) == user_id
    )
    (user,) = await ctx.read(statement)
    values = select(*select_columns(KeyValueEntry)).where(
        col(KeyValueEntry.stream_id) == user_id,
        col(KeyValueEntry.expires_at).is_(None) | (col(KeyValueEntry.expires_at) > now),
    )
    stored = [
        {"store": row.store, "key": row.key, "value": row.value, "expires": row.expires_at}
        for row in await ctx.read(values.order_by(col(KeyValueEntry.store), col(KeyValueEntry.key)))
    ]
    facts = {name: getattr(user, name) for name in SETTING_COLUMNS}
    label_records = [
        {"keyword": row.keyword, "name": row.name, "color": row.color}
        for row in await ctx.load(labels.load_own_labels_by_user, user_id)
    ]
    answered = await autoreplies.export_own_autoreply_if_set(ctx, user_id)
    return {
        "account": user.username,
        "settings": facts,
        "keyValues": stored,
        "labels": label_records,
        "autoreply": answered,
        "identities": await _load_identities_for_export_record(ctx, user_id),
        "savedSearches": await _saved_search_records(ctx, user_id),
        "subscriptions": await _load_paths_of_subscriptions_without_mailbox(ctx, user_id),
        "filters": await filter_transfer.export_filters(ctx, user_id),
        "sieveScripts": await sieve_scripts.export_scripts(ctx, user_id),
        "senderRules": await _sender_rule_records(ctx, user_id),
        "scheduled": await scheduled_messages.scheduled_submission_records(ctx, user_id),
        **await transfer.export_connectors(ctx, user_id, passphrase),
    }


async def _sender_rule_records(ctx: Context, user_id: int) -> list[dict[str, Any]]:
    """Return the user's sender rules for the record, by pattern."""
    names = ("pattern", "action", "comment")
    statement = select(*select_columns(SenderRule, names)).where(
        col(SenderRule.scope) == scope_of_user(user_id)
    )
    rows = await ctx.read(statement.order_by(col(SenderRule.pattern)))
    return [dict(row._mapping) for row in rows]  # noqa: SLF001


async def _load_identities_for_export_record(ctx: Context, user_id: int) -> list[dict[str, Any]]:
    """Return the user's identities for the record, also those that can't be used now."""
    names = (
        "display_address",
        "name",
        "preferred",
        "reply_to",
        "bcc",
        "signature_text",
        "signature_html",
    )
    statement = (
        select(*select_columns(Identity, names), col(Mailbox.path))
        .outerjoin(
            Mailbox,
            (col(Mailbox.id) == col(Identity.mailbox_id)) & (col(Mailbox.user_id) == user_id),
        )
        .where(col(Identity.user_id) == user_id)
        .order_by(col(Identity.created_at), col(Identity.id))
    )
    return [
        {
            "address": row.display_address,
            "name": row.name,
            "default": row.preferred,
            "replyTo": row.reply_to,
            "bcc": row.bcc,
            "signatureText": row.signature_text,
            "signatureHtml": row.signature_html,
            "sentMailbox": row.path,
        }
        for row in await ctx.read(statement)
    ]


async def _saved_search_records(ctx: Context, user_id: int) -> list[dict[str, Any]]:
    """Return the user's saved searches for the record, as search texts."""
    now = ctx.environment.now()
    rows = await ctx.load(saved_searches.load_visible_saved_searches_by_user, user_id)
    return [{"name": row.name, "query": query_from_fields(row.filter, now)} for row in rows]


async def _load_paths_of_subscriptions_without_mailbox(ctx: Context, user_id: int) -> list[str]:
    """Return the paths without a mailbox that the user is subscribed to."""
    statement = select(col(MailboxSubscription.path)).where(
        col(MailboxSubscription.user_id) == user_id
    )
    return [row.path for row in await ctx.read(statement.order_by(col(MailboxSubscription.path)))]
