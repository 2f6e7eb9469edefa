"""Times at which certificates are renewed, and the query of the authority for them (RFC 9773)."""

import asyncio
import logging
from contextlib import suppress
from datetime import datetime, timedelta
from typing import Any

from mail.tls import acme_client, acme_connection
from mail.tls.acme_client import AcmeError, RenewalAdvice
from models.runtime.environment import Environment
from models.store.columns import ColumnRow
from resolvers.certificates import acme_accounts
from resolvers.certificates.acme_leases import CertificateLeaseLost, store_values_and_release_lease
from resolvers.certificates.stored_certificates import default_renewal_time

log = logging.getLogger(__name__)
MAX_RETRY = timedelta(days=1)
MAX_RENEWAL_JITTER = timedelta(days=1)  # the longest random time by which a renewal is earlier
RENEWAL_JITTER_PART = 30  # for a short-lived certificate this part of its lifetime
# between two queries of renewal information; MAX_RETRY is the longest
MIN_RENEWAL_INFO_INTERVAL = timedelta(minutes=1)
# if the authority gives none
DEFAULT_RENEWAL_INFO_INTERVAL = timedelta(seconds=acme_client.DEFAULT_ADVICE_SECONDS)


def max_renewal_jitter(not_before: datetime, not_after: datetime) -> timedelta:
    """Return the longest random time by which a renewal is earlier."""
    return min(MAX_RENEWAL_JITTER, (not_after - not_before) / RENEWAL_JITTER_PART)


async def query_renewal_advice_of_current_authority(
    environment: Environment, certificate: ColumnRow
) -> RenewalAdvice | None:
    """Return the renewal window that the authority publishes.

    None if it has none, or the certificate is from another authority.
    """
    directory_url = environment.options.acme_directory
    if certificate.acme_directory != directory_url:
        return None
    account = await acme_accounts.load_or_create_account(environment, directory_url)
    server = acme_accounts.acme_server(environment, directory_url)
    async with acme_connection.connect_acme(server, account.private_key) as client:
        return (
            await asyncio.to_thread(client.load_renewal_advice, certificate.chain)
            if client.has_renewal_info
            else None
        )


def renewal_info_columns(
    certificate: ColumnRow, renewal_window: RenewalAdvice, now: datetime
) -> dict[str, Any]:
    """Return the columns for a renewal at a random time in the window, but not at its very end.

    The random number is derived from the fingerprint, so the time stays the same.
    """
    position_in_window = int(certificate.sha256[:8], 16) / (1 << 32)
    jitter = max_renewal_jitter(certificate.not_before, certificate.not_after)
    renew_at = (
        renewal_window.start + (renewal_window.end - renewal_window.start) * position_in_window
    )
    renew_at = min(max(renew_at, certificate.not_before + jitter), certificate.not_after - jitter)
    next_query = now + min(max(renewal_window.valid_for, MIN_RENEWAL_INFO_INTERVAL), MAX_RETRY)
    return {
        "acme_renew_at": renew_at,
        "acme_next_at": min(renew_at, next_query),
    }


async def store_default_renewal_time_and_release_lease(
    environment: Environment, certificate: ColumnRow, failure: AcmeError
) -> None:
    """Use the default renewal time, unless the stored one is earlier, and query again later."""
    log_values = {"serverName": certificate.server_name, "why": str(failure)}
    log.warning("Could not query the ACME renewal information", extra=log_values)
    renew_at = min(
        default_renewal_time(certificate.not_before, certificate.not_after),
        certificate.acme_renew_at,
    )
    next_query = environment.now() + DEFAULT_RENEWAL_INFO_INTERVAL
    values = {"acme_renew_at": renew_at, "acme_next_at": min(renew_at, next_query)}
    with suppress(CertificateLeaseLost):
        await store_values_and_release_lease(environment, certificate, values)
