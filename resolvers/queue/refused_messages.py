"""The entry of the log store for a message of a request that a limit on sending refuses."""

from dataclasses import replace

from mail.logs.message_entries import ReachedLimitEntry, record_limited_message
from resolvers.context import Context


def record_refused_message(ctx: Context, limit: ReachedLimitEntry) -> None:
    """Write an entry, with the client and the request, unless the request is a dry run."""
    if not ctx.is_dry_run:
        entry = replace(limit, client_ip=ctx.client_ip, correlation_id=ctx.request_id or None)
        record_limited_message(ctx.environment, entry)
