"""Failures of clients in operations: counted for the ban of their network."""

import logging

from mail.throttling.network_failures import count_failure_and_ban_at_limit
from models.auth.security_log import SecurityEventAction, SecurityEventResult
from models.store.outages import StorageUnavailable
from models.throttling.policy import BanCause
from resolvers.auth import security_log
from resolvers.auth.security_event_rows import NewSecurityEvent
from resolvers.context import Context

log = logging.getLogger(__name__)


async def count_failure_and_log_ban(
    ctx: Context, cause: BanCause, user_id: int | None = None
) -> None:
    """Count a failure of the caller's network, in a transaction that no rollback undoes.

    If the network is banned now, writes that to the security log of the attacked user in the
    background. Failures of users of a front end that does not name its clients are not counted,
    since a ban would refuse the front end.

    If the store is busy or unavailable, the failure is not counted, and a warning is logged: the
    caller must still count it for the delay of the account.
    """
    if ctx.viewer.is_trusted_front_end and not ctx.has_named_client:
        return
    try:
        ban = await count_failure_and_ban_at_limit(ctx.environment, ctx.client_ip, cause)
    except StorageUnavailable as failure:
        fields = {"ip": ctx.client_ip, "cause": cause, "problem": failure.message}
        log.warning("Failure not counted for a ban", extra=fields)
        return
    if ban is not None and user_id is not None:
        detail = {"network": ban.network, "until": ban.ends_at.isoformat()}
        security_log.log_event_in_background(
            ctx,
            NewSecurityEvent(
                SecurityEventAction.BAN_CREATED, user_id, SecurityEventResult.FAILURE, detail=detail
            ),
        )
