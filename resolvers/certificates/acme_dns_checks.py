"""DNS checks of the names of a certificate before it is ordered: addresses and CAA."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from mail.network.dns_resolver import query_dns_records_or_none
from mail.tls import acme_client
from mail.tls.acme_client import AcmeError
from models.runtime.environment import Environment

DNS_TIMEOUT = 5.0  # seconds per query
MAX_CONCURRENT_CHECKS = 10  # names checked in DNS at the same time


async def check_each_name(
    server_names: Sequence[str], check: Callable[[str], Awaitable[None]]
) -> None:
    """Run a check for each name.

    Raises AcmeError with the message of the first failed one.
    """
    slots, message_by_name = asyncio.Semaphore(MAX_CONCURRENT_CHECKS), {}

    async def check_name(name: str) -> None:
        async with slots:
            try:
                await check(name)
            except AcmeError as problem:
                message_by_name[name] = str(problem)

    async with asyncio.TaskGroup() as group:
        for name in server_names:
            group.create_task(check_name(name))
    failed_names = [name for name in server_names if name in message_by_name]
    if failed_names:
        raise acme_client.failure_of_names(failed_names, message_by_name[failed_names[0]])


async def require_dns_address(environment: Environment, server_name: str) -> None:
    """Raise AcmeError if DNS has no address for this name."""
    for record_type in ("A", "AAAA"):
        if (
            await query_dns_records_or_none(
                environment.options.dns_resolver, server_name, record_type, DNS_TIMEOUT
            )
            != []
        ):
            return
    raise AcmeError("DNS has no A or AAAA record of the name: publish one.")


async def require_caa_allows(
    environment: Environment, server_name: str, identities: tuple[str, ...]
) -> None:
    """Raise AcmeError if CAA records allow other authorities only (RFC 8659)."""
    queried_name = server_name
    while identities and "." in queried_name:
        records_found = await query_dns_records_or_none(
            environment.options.dns_resolver, queried_name, "CAA", DNS_TIMEOUT
        )
        if records_found is None:
            return  # the authority decides
        if records_found:
            issuers = [
                record.value.decode(errors="replace").partition(";")[0].strip().lower()
                for record in records_found
                if record.tag.lower() == b"issue"
            ]
            if issuers and not set(issuers) & set(identities):
                raise AcmeError(
                    f"The CAA record of {queried_name} does not allow {identities[0]} to "
                    "issue certificates."
                )
            return
        queried_name = queried_name.partition(".")[2]
