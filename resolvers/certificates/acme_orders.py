"""Order a certificate from an ACME authority and store it (RFC 8555)."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

from mail.tls import acme_client, acme_connection, pem_certificates
from mail.tls.acme_client import AcmeClient, AcmeError
from mail.tls.pem_certificates import CertificateInput, CertificateWithKey
from models.certificates import AcmeState
from models.events.journal import PLATFORM
from models.events.wakeups import CERTIFICATES
from models.runtime.environment import Environment, wake_workers_after_commit
from models.store.columns import ColumnRow
from resolvers.certificates import acme_accounts
from resolvers.certificates.acme_challenges import (
    delete_challenges,
    store_challenges_and_set_validating,
)
from resolvers.certificates.acme_dns_checks import (
    check_each_name,
    require_caa_allows,
    require_dns_address,
)
from resolvers.certificates.acme_leases import (
    store_acme_state,
    update_leased_row_or_raise_lease_lost,
)
from resolvers.certificates.acme_renewal_times import max_renewal_jitter
from resolvers.certificates.stored_certificates import (
    certificate_columns,
    decrypt_private_key,
    renewal_columns,
    replace_certificate_names,
)

AUTHORITY_TIMEOUT = timedelta(minutes=3)  # for the authority to check the challenges, or to sign
Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """An issued certificate with the URL of its ACME directory.

    `has_renewal_info` is true if the authority publishes renewal information.
    """

    certificate: CertificateWithKey
    directory_url: str
    has_renewal_info: bool


async def order_certificate(environment: Environment, certificate: ColumnRow) -> IssuedCertificate:
    """Order a certificate with the present key, so that TLSA records stay valid.

    Raises AcmeError, InvalidInput, ServiceUnavailable or CertificateLeaseLost.
    """
    options, server_names = environment.options, [certificate.server_name, *certificate.acme_names]
    await check_each_name(server_names, lambda name: require_dns_address(environment, name))
    await store_acme_state(environment, certificate, AcmeState.ORDERING)
    private_key = (
        decrypt_private_key(environment, certificate)
        if certificate.private_key
        else await asyncio.to_thread(acme_client.new_certificate_key)
    )
    account = await acme_accounts.load_or_create_account(environment, options.acme_directory)
    server = acme_accounts.acme_server(environment, options.acme_directory)
    async with acme_connection.connect_acme(server, account.private_key) as client:
        await check_each_name(
            server_names, lambda name: require_caa_allows(environment, name, client.caa_identities)
        )
        account_url = await asyncio.to_thread(
            client.register_or_use_account, account.url, options.acme_contact
        )
        if account_url != account.url:
            await acme_accounts.store_account_url(environment, account.id, account_url)
        csr = await asyncio.to_thread(
            acme_client.certificate_request_pem, private_key, server_names
        )
        has_renewal_info = (
            certificate.acme_directory == options.acme_directory and client.has_renewal_info
        )
        replaced_id = (
            acme_client.certificate_renewal_id(certificate.chain) if has_renewal_info else None
        )
        try:
            authorization_urls = await asyncio.to_thread(
                client.create_order, csr, server_names, replaced_id
            )
        except AcmeError as problem:
            if problem.code == acme_client.UNKNOWN_ACCOUNT:
                # the next attempt registers a new account
                await acme_accounts.store_account_url(environment, account.id, None)
            raise
        await _complete_challenges(environment, certificate, client, authorization_urls)
        await store_acme_state(environment, certificate, AcmeState.ISSUING)
        await asyncio.to_thread(client.finalize_order)
        certificate_chain = await _poll_until_true(
            environment,
            client.poll_certificate_or_none,
            "The ACME server did not issue the certificate in time.",
        )
    issued = await asyncio.to_thread(
        pem_certificates.validate_certificate, CertificateInput(str(certificate_chain), private_key)
    )
    if missing_names := [
        name for name in server_names if not pem_certificates.covers_name(issued.dns_names, name)
    ]:
        raise AcmeError(f"The issued certificate does not contain {missing_names[0]}.")
    return IssuedCertificate(issued, options.acme_directory, client.has_renewal_info)


async def _complete_challenges(
    environment: Environment,
    certificate: ColumnRow,
    client: AcmeClient,
    authorization_urls: Sequence[str],
) -> None:
    """Publish the challenges of all names and wait until the authority has checked them.

    Raises AcmeError.
    """
    optional_challenges = [
        await asyncio.to_thread(client.load_challenge_unless_valid, url)
        for url in authorization_urls
    ]
    challenges = [challenge for challenge in optional_challenges if challenge]
    try:
        await store_challenges_and_set_validating(environment, certificate, challenges)
        for challenge in challenges:
            await asyncio.to_thread(client.answer_challenge, challenge)
        await _poll_until_true(
            environment,
            client.poll_authorizations_and_return_are_valid,
            "The ACME server did not verify the challenge in time.",
        )
    finally:
        await delete_challenges(environment, challenges)


async def _poll_until_true(
    environment: Environment, poll: Callable[[], Value], timeout_message: str
) -> Value:
    """Poll until the function returns a true value.

    Raises AcmeError after AUTHORITY_TIMEOUT.
    """
    deadline = asyncio.get_running_loop().time() + AUTHORITY_TIMEOUT.total_seconds()
    while asyncio.get_running_loop().time() < deadline:
        if polled := await asyncio.to_thread(poll):
            return polled
        environment.reach_fault_point("acme")
    raise AcmeError(timeout_message)


async def store_issued_certificate(
    environment: Environment, certificate: ColumnRow, issued: IssuedCertificate
) -> None:
    """Store an issued certificate and wake the listeners, which serve it at once."""
    new_certificate = issued.certificate
    renewal_values = renewal_columns(new_certificate.not_before, new_certificate.not_after)
    share = random.uniform(0, 1)  # noqa: S311
    jitter = share * max_renewal_jitter(new_certificate.not_before, new_certificate.not_after)
    renew_at = renewal_values["acme_next_at"] - jitter
    values = {
        **certificate_columns(environment, certificate.id, new_certificate, certificate.version),
        **renewal_values,
        "acme_directory": issued.directory_url,
        "acme_renew_at": renew_at,
        "acme_next_at": environment.now() if issued.has_renewal_info else renew_at,
        "acme_failures": 0,
        "lease": None,
        "holder": None,
    }
    async with environment.write_session(PLATFORM) as session:
        await update_leased_row_or_raise_lease_lost(environment, session, certificate, values)
        await replace_certificate_names(session, certificate.id, new_certificate.dns_names)
        wake_workers_after_commit(session, CERTIFICATES)
