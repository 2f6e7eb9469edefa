"""The worker that orders and renews certificates by ACME. It leases the one it works on."""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import delete, insert, or_, select, update
from sqlmodel import col
from sqlmodel.ext.asyncio.session import AsyncSession

from mail.network.dns_resolver import query_records
from mail.tls import acme_client, acme_connection, pem_certificates
from mail.tls.acme_client import AcmeClient, AcmeError, HttpChallenge, RenewalAdvice
from mail.tls.pem_certificates import CertificateInput, CertificateWithKey
from models.certificates import AcmeChallenge, Certificate
from models.errors import InvalidInput, ServiceUnavailable
from models.events import journal
from models.events.event_types import EventType
from models.events.journal import PLATFORM, JournalEntry
from models.events.wakeups import CERTIFICATES, wait_for_any
from models.observability import metrics
from models.runtime import leases
from models.runtime.environment import Environment, wake_workers_after_commit
from models.store.columns import ColumnRow, select_columns
from resolvers.certificates import acme_accounts
from resolvers.certificates.certificates import (
    certificate_columns,
    decrypt_private_key,
    renewal_columns,
    replace_certificate_names,
)

log = logging.getLogger(__name__)

POLL_SECONDS = 60.0  # between checks without wake-up
ORDER_TIMEOUT = timedelta(minutes=8)  # per certificate
RETRY_AFTER_ERROR_SECONDS = 600.0  # until a step without stored result is repeated
AUTHORITY_TIMEOUT = timedelta(minutes=3)  # for the authority to check the challenges, or to sign
FIRST_RETRY = timedelta(minutes=10)  # after a failure; doubled each time
MAX_RETRY = timedelta(days=1)
RATE_LIMIT_RETRY = timedelta(hours=1)  # at least, if the authority limits the rate
RETRY_SPREAD = 0.1  # the share by which a retry is earlier or later, so that not all come at once
MAX_RENEWAL_JITTER = timedelta(days=1)  # the longest random time by which a renewal is earlier
RENEWAL_JITTER_PART = 30  # for a short-lived certificate this part of its lifetime
MIN_RENEWAL_INFO_INTERVAL = timedelta(
    minutes=1
)  # between two queries of renewal information; MAX_RETRY is the longest
DEFAULT_RENEWAL_INFO_INTERVAL = timedelta(
    seconds=acme_client.DEFAULT_ADVICE_SECONDS
)  # if the authority gives none
CHALLENGE_LIFETIME = timedelta(hours=1)
DNS_TIMEOUT = 5.0  # seconds per query
MAX_CONCURRENT_CHECKS = 10  # names checked in DNS at the same time

ORDERS_METRIC = metrics.counter(
    "merganser_acme_orders", "Orders of certificates that ended.", "outcome"
)

Value = TypeVar("Value")


class CertificateLeaseLost(Exception):
    """The certificate was changed or deleted, or another process has leased it."""


async def run_worker(environment: Environment) -> None:
    """Process due certificates, one after another, until cancelled."""
    async with leases.registered_process(environment):
        await _run_loop(environment)


async def _run_loop(environment: Environment) -> None:
    with environment.wakeups.follow(
        [CERTIFICATES, PLATFORM]
    ) as wakeup:  # changes of settings are recorded there
        while True:
            wakeup.clear()
            try:
                while await order_or_query_next_certificate(environment):
                    pass
            except Exception:  # keep running: the next attempt can succeed
                log.exception("certificates could not be looked at")
            await wait_for_any([wakeup], POLL_SECONDS)


async def order_or_query_next_certificate(environment: Environment) -> bool:
    """Lease and process the next due certificate. Returns False if there is none."""
    certificate = await _lease_next_certificate(environment)
    if certificate is None:
        return False
    try:
        with leases.protect_leases_in_use(environment, certificate.lease):
            await _order_or_query_renewal(environment, certificate)
    except Exception:
        leases.end_lease_at_later_heartbeat(
            environment,
            Certificate,
            *_is_leased_certificate(certificate),
            delay_seconds=RETRY_AFTER_ERROR_SECONDS,
        )
        raise
    return True


async def _order_or_query_renewal(environment: Environment, certificate: ColumnRow) -> None:
    """Order the certificate or query when to renew it, and store the outcome."""
    is_renewed_later = (
        certificate.acme_renew_at is not None and certificate.acme_renew_at > environment.now()
    )
    process, handle_failure = (
        (_update_renewal_time, _use_default_renewal_time)
        if is_renewed_later
        else (_order_and_store, _store_failure_and_retry_time)
    )
    try:
        await process(environment, certificate)
    except CertificateLeaseLost:
        log.info("certificate changed meanwhile", extra={"serverName": certificate.server_name})
        if not is_renewed_later:
            ORDERS_METRIC.add("lost")
    except AcmeError as problem:
        await handle_failure(environment, certificate, problem)
    except (InvalidInput, ServiceUnavailable) as problem:
        await handle_failure(
            environment, certificate, AcmeError(f"what came cannot be used: {problem.message}")
        )
    except TimeoutError:
        await handle_failure(environment, certificate, AcmeError("the authority takes too long"))
    except asyncio.CancelledError:
        await _release_lease(environment, certificate)
        raise
    except Exception:
        log.exception("certificate broke", extra={"serverName": certificate.server_name})
        await handle_failure(environment, certificate, AcmeError("it broke on our side"))


async def _order_and_store(environment: Environment, certificate: ColumnRow) -> None:
    """Order the certificate and store it."""
    log.info("certificate ordered", extra={"serverName": certificate.server_name})
    async with asyncio.timeout(ORDER_TIMEOUT.total_seconds()):
        issued = await _order_certificate(environment, certificate)
    await _store_issued_certificate(environment, certificate, issued)
    ORDERS_METRIC.add("issued")
    log.info("certificate issued", extra={"serverName": certificate.server_name})


async def _update_renewal_time(environment: Environment, certificate: ColumnRow) -> None:
    """Query the authority for the renewal time and store it."""
    async with asyncio.timeout(ORDER_TIMEOUT.total_seconds()):
        advice = await _query_renewal_info(environment, certificate)
    unchanged_time = {"acme_next_at": certificate.acme_renew_at}
    await _store_values_and_release_lease(
        environment,
        certificate,
        _values_from_renewal_info(certificate, advice, environment.now())
        if advice
        else unchanged_time,
    )


async def _lease_next_certificate(environment: Environment) -> ColumnRow | None:
    """Lease the next due certificate, or return None."""
    if not environment.options.acme_terms_agreed:
        return None
    now, lease = environment.now(), environment.new_id()
    is_unleased = leases.is_unleased(Certificate)
    is_due = (col(Certificate.acme), col(Certificate.acme_next_at) <= now, is_unleased)
    statement = (
        select(col(Certificate.id)).where(*is_due).order_by(col(Certificate.acme_next_at)).limit(1)
    )
    due_certificate = next(iter(await environment.database.read(statement)), None)
    if due_certificate is None:
        return None  # an idle worker writes nothing
    process_id = await leases.ensure_registered(environment)
    async with environment.write_session() as session:
        update_statement = update(Certificate).where(
            col(Certificate.id) == due_certificate.id, *is_due
        )
        update_statement = update_statement.where(leases.is_registered(process_id))
        lease_statement = update_statement.values(leases.lease_values(process_id, lease)).returning(
            *select_columns(Certificate)
        )
        return (await (await session.connection()).execute(lease_statement)).first()


@dataclass(frozen=True, slots=True)
class IssuedCertificate:
    """An issued certificate with the URL of its ACME directory.

    `has_renewal_info` is true if the authority publishes renewal information.
    """

    certificate: CertificateWithKey
    directory_url: str
    has_renewal_info: bool


async def _order_certificate(environment: Environment, certificate: ColumnRow) -> IssuedCertificate:
    """Order a certificate with the present key, so that TLSA records stay valid.

    Raises AcmeError, InvalidInput, ServiceUnavailable or CertificateLeaseLost.
    """
    options, server_names = environment.options, [certificate.server_name, *certificate.acme_names]
    await _check_each_name(server_names, lambda name: _require_dns_address(environment, name))
    await _store_acme_state(environment, certificate, "asks the authority")
    private_key = (
        decrypt_private_key(environment, certificate)
        if certificate.private_key
        else await asyncio.to_thread(acme_client.new_certificate_key)
    )
    account = await acme_accounts.load_or_create_account(environment, options.acme_directory)
    server = acme_accounts.acme_server(environment, options.acme_directory)
    async with acme_connection.connect_acme(server, account.private_key) as client:
        await _check_each_name(
            server_names, lambda name: _require_caa_allows(environment, name, client.caa_identities)
        )
        account_url = await asyncio.to_thread(
            client.open_account, account.url, options.acme_contact
        )
        if account_url != account.url:
            await acme_accounts.store_account_url(environment, account.id, account_url)
        csr = await asyncio.to_thread(acme_client.certificate_request, private_key, server_names)
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
                await acme_accounts.store_account_url(
                    environment, account.id, None
                )  # the next attempt registers a new account
            raise
        await _prove_control(environment, certificate, client, authorization_urls)
        await _store_acme_state(environment, certificate, "proved, waits for the certificate")
        await asyncio.to_thread(client.finalize_order)
        certificate_chain = await _poll_until_true(
            environment, client.poll_certificate, "the authority did not sign in time"
        )
    issued = await asyncio.to_thread(
        pem_certificates.validate_certificate, CertificateInput(str(certificate_chain), private_key)
    )
    if missing_names := [
        name for name in server_names if not pem_certificates.covers_name(issued.dns_names, name)
    ]:
        raise AcmeError(f"{missing_names[0]} does not stand in the certificate that came")
    return IssuedCertificate(issued, options.acme_directory, client.has_renewal_info)


async def _check_each_name(
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


async def _prove_control(
    environment: Environment,
    certificate: ColumnRow,
    client: AcmeClient,
    authorization_urls: Sequence[str],
) -> None:
    """Publish the challenges of all names and wait until the authority has checked them.

    Raises AcmeError.
    """
    optional_challenges = [
        await asyncio.to_thread(client.load_challenge, url) for url in authorization_urls
    ]
    challenges = [challenge for challenge in optional_challenges if challenge]
    try:
        await _publish_challenges(environment, certificate, challenges)
        for challenge in challenges:
            await asyncio.to_thread(client.answer_challenge, challenge)
        await _poll_until_true(
            environment,
            client.poll_authorizations,
            "the authority did not look for its challenge in time",
        )
    finally:
        await _delete_challenges(environment, challenges)


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


async def _require_dns_address(environment: Environment, server_name: str) -> None:
    """Raise AcmeError if DNS has no address for this name."""
    for record_type in ("A", "AAAA"):
        if (
            await query_records(
                environment.options.dns_resolver, server_name, record_type, DNS_TIMEOUT
            )
            != []
        ):
            return
    raise AcmeError("DNS has no address for it: publish A or AAAA")


async def _require_caa_allows(
    environment: Environment, server_name: str, identities: tuple[str, ...]
) -> None:
    """Raise AcmeError if CAA records allow other authorities only (RFC 8659)."""
    queried_name = server_name
    while identities and "." in queried_name:
        records_found = await query_records(
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
                raise AcmeError(f"CAA of {queried_name} does not let {identities[0]} issue")
            return
        queried_name = queried_name.partition(".")[2]


def _is_leased_certificate(certificate: ColumnRow) -> tuple[Any, Any]:
    return col(Certificate.id) == certificate.id, col(Certificate.lease) == certificate.lease


async def _store_acme_state(environment: Environment, certificate: ColumnRow, state: str) -> None:
    """Store how far the order is. Raises CertificateLeaseLost if the lease is lost."""
    await _require_lease_and_store_values(environment, certificate, {"acme_state": state})


async def _require_lease_and_store_values(
    environment: Environment, certificate: ColumnRow, values: dict[str, Any]
) -> None:
    async with environment.write_session(PLATFORM) as session:
        await _update_and_record_leased_row(environment, session, certificate, values)


async def _update_and_record_leased_row(
    environment: Environment, session: AsyncSession, certificate: ColumnRow, values: dict[str, Any]
) -> None:
    now = environment.now()
    statement = (
        update(Certificate)
        .where(*_is_leased_certificate(certificate))
        .values(**values, updated_at=now)
    )
    if not (await (await session.connection()).execute(statement)).rowcount:
        raise CertificateLeaseLost
    entry = JournalEntry(EventType.CERTIFICATE_CHANGED, [certificate.id])
    await journal.record_entry(session, PLATFORM, entry, at=now)


async def _publish_challenges(
    environment: Environment, certificate: ColumnRow, challenges: list[HttpChallenge]
) -> None:
    """Store the challenges, so that every process can answer them."""
    now = environment.now()
    answer_by_token = {one.token: one.key_authorization for one in challenges}
    common_values = {"certificate_id": certificate.id, "expires_at": now + CHALLENGE_LIFETIME}
    rows = [
        {"token": token, "answer": answer, **common_values}
        for token, answer in answer_by_token.items()
    ]
    async with environment.write_session(PLATFORM) as session:
        connection = await session.connection()
        is_replaced_or_expired = or_(
            col(AcmeChallenge.expires_at) < now, col(AcmeChallenge.token).in_(answer_by_token)
        )
        await connection.execute(delete(AcmeChallenge).where(is_replaced_or_expired))
        name_count = 1 + len(certificate.acme_names)
        state = (
            f"proves that {name_count} names are ours"
            if name_count > 1
            else "proves that the name is ours"
        )
        await _update_and_record_leased_row(
            environment, session, certificate, {"acme_state": state}
        )
        if rows:
            await connection.execute(insert(AcmeChallenge), rows)


async def _delete_challenges(environment: Environment, challenges: list[HttpChallenge]) -> None:
    is_token = col(AcmeChallenge.token).in_([one.token for one in challenges])
    async with environment.write_session() as session:
        await (await session.connection()).execute(delete(AcmeChallenge).where(is_token))


async def find_challenge_answer(environment: Environment, challenge_token: str) -> str | None:
    """Return the answer to an ACME challenge token, or None."""
    now = environment.now()
    statement = select(col(AcmeChallenge.answer)).where(
        col(AcmeChallenge.token) == challenge_token, col(AcmeChallenge.expires_at) > now
    )
    return next((str(row.answer) for row in await environment.database.read(statement)), None)


async def _store_issued_certificate(
    environment: Environment, certificate: ColumnRow, issued: IssuedCertificate
) -> None:
    """Store an issued certificate and wake the listeners, which serve it at once."""
    new_certificate = issued.certificate
    renewal_values = renewal_columns(new_certificate.not_before, new_certificate.not_after)
    share = random.uniform(0, 1)  # noqa: S311
    jitter = share * _max_renewal_jitter(new_certificate.not_before, new_certificate.not_after)
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
        await _update_and_record_leased_row(environment, session, certificate, values)
        await replace_certificate_names(session, certificate.id, new_certificate.dns_names)
        wake_workers_after_commit(session, CERTIFICATES)


def _max_renewal_jitter(not_before: datetime, not_after: datetime) -> timedelta:
    """Return the longest random time by which a renewal is earlier."""
    return min(MAX_RENEWAL_JITTER, (not_after - not_before) / RENEWAL_JITTER_PART)


async def _query_renewal_info(
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


def _values_from_renewal_info(
    certificate: ColumnRow, renewal_window: RenewalAdvice, now: datetime
) -> dict[str, Any]:
    """Return the columns for a renewal at a random time in the window, but not at its very end.

    The random number is derived from the fingerprint, so the time stays the same.
    """
    position_in_window = int(certificate.sha256[:8], 16) / (1 << 32)
    jitter = _max_renewal_jitter(certificate.not_before, certificate.not_after)
    renew_at = (
        renewal_window.start + (renewal_window.end - renewal_window.start) * position_in_window
    )
    renew_at = min(max(renew_at, certificate.not_before + jitter), certificate.not_after - jitter)
    next_query = now + min(max(renewal_window.valid_for, MIN_RENEWAL_INFO_INTERVAL), MAX_RETRY)
    return {
        "acme_state": f"valid, renewed on {renew_at:%Y-%m-%d} as its authority asks",
        "acme_renew_at": renew_at,
        "acme_next_at": min(renew_at, next_query),
    }


async def _use_default_renewal_time(
    environment: Environment, certificate: ColumnRow, failure: AcmeError
) -> None:
    """Use the default renewal time, unless the stored one is earlier, and query again later."""
    log_values = {"serverName": certificate.server_name, "why": str(failure)}
    log.warning("the authority does not say when a certificate is to be renewed", extra=log_values)
    renewal_values = renewal_columns(certificate.not_before, certificate.not_after)
    values = renewal_values if renewal_values["acme_renew_at"] < certificate.acme_renew_at else {}
    renew_at = min(renewal_values["acme_renew_at"], certificate.acme_renew_at)
    with suppress(CertificateLeaseLost):
        await _store_values_and_release_lease(
            environment,
            certificate,
            {
                **values,
                "acme_next_at": min(renew_at, environment.now() + DEFAULT_RENEWAL_INFO_INTERVAL),
            },
        )


async def _store_values_and_release_lease(
    environment: Environment, certificate: ColumnRow, values: dict[str, Any]
) -> None:
    """Release the lease with new values. Only a changed state is recorded in the journal."""
    values = {**values, "lease": None, "holder": None}
    if values.get("acme_state", certificate.acme_state) != certificate.acme_state:
        await _require_lease_and_store_values(environment, certificate, values)
        return
    async with environment.write_session() as session:
        statement = update(Certificate).where(*_is_leased_certificate(certificate)).values(**values)
        await (await session.connection()).execute(statement)


async def _store_failure_and_retry_time(
    environment: Environment, certificate: ColumnRow, failure: AcmeError
) -> None:
    """Store why the order failed and when it is repeated."""
    ORDERS_METRIC.add("failed")
    failures = certificate.acme_failures + 1
    pause = min(FIRST_RETRY * 2 ** min(failures - 1, 10), MAX_RETRY)
    if failure.code == acme_client.RATE_LIMITED:
        pause = max(pause, RATE_LIMIT_RETRY)
    factor = random.uniform(1 - RETRY_SPREAD, 1 + RETRY_SPREAD)  # noqa: S311
    retry_at: datetime = environment.now() + pause * factor
    log_values = {"serverName": certificate.server_name, "why": str(failure), "failures": failures}
    log.warning("certificate not issued", extra=log_values)
    values = {
        "acme_state": f"failed, tried again {retry_at:%Y-%m-%d %H:%M} UTC: {failure}",
        "acme_failures": failures,
        "acme_next_at": retry_at,
        "lease": None,
        "holder": None,
    }
    try:
        await _require_lease_and_store_values(environment, certificate, values)
    except CertificateLeaseLost:
        log.info("certificate changed meanwhile", extra={"serverName": certificate.server_name})


async def _release_lease(environment: Environment, certificate: ColumnRow) -> None:
    """Release the lease, so that another process can continue at once."""
    async with environment.write_session() as session:
        statement = (
            update(Certificate)
            .where(*_is_leased_certificate(certificate))
            .values(lease=None, holder=None)
        )
        await (await session.connection()).execute(statement)
