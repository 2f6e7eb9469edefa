"""The worker that orders and renews certificates by ACME. It leases the one it works on."""

import asyncio
import logging
import random
from datetime import datetime, timedelta

from mail.tls import acme_client
from mail.tls.acme_client import AcmeError, AcmeServerUnavailable
from models.certificates import AcmeState, Certificate
from models.errors import InvalidInput, ServiceUnavailable
from models.events.journal import PLATFORM
from models.events.wakeups import CERTIFICATES, wait_for_any_event_or_timeout
from models.observability import metrics
from models.runtime import leases
from models.runtime.environment import Environment
from models.runtime.worker_stop import is_worker_stopping
from models.store.columns import ColumnRow
from models.store.outages import storage_failure
from resolvers.certificates.acme_leases import (
    CertificateLeaseLost,
    is_leased_certificate_sql,
    lease_next_due_certificate,
    release_lease,
    require_lease_and_store_values,
    store_values_and_release_lease,
)
from resolvers.certificates.acme_orders import order_certificate, store_issued_certificate
from resolvers.certificates.acme_renewal_times import (
    MAX_RETRY,
    query_renewal_advice_of_current_authority,
    renewal_info_columns,
    store_default_renewal_time_and_release_lease,
)

log = logging.getLogger(__name__)
POLL_SECONDS = 60.0  # between checks without wake-up
ORDER_TIMEOUT = timedelta(minutes=8)  # per certificate
RETRY_AFTER_ERROR_SECONDS = 600.0  # until a step without stored result is repeated
FIRST_RETRY = timedelta(minutes=10)  # after a failure; doubled after each failed order
RATE_LIMIT_RETRY = timedelta(hours=1)  # at least, if the authority limits the rate
RETRY_SPREAD = 0.1  # the share by which a retry is earlier or later, so that not all come at once
ORDERS_METRIC = metrics.counter(
    "merganser_acme_orders",
    "Ended ACME orders: issued; failed; lost, the certificate was changed in the meantime.",
    "outcome",
)


async def order_and_renew_certificates_forever(environment: Environment) -> None:
    """Process due certificates, one after another, until cancelled or stopped."""
    async with leases.keep_process_registered(environment):
        await _order_or_query_certificates_forever(environment)


async def _order_or_query_certificates_forever(environment: Environment) -> None:
    with environment.wakeups.follow(
        [CERTIFICATES, PLATFORM]
    ) as wakeup:  # changes of settings are recorded there
        while not is_worker_stopping():
            wakeup.clear()
            try:
                while not is_worker_stopping() and await order_or_query_next_due_certificate(
                    environment
                ):
                    pass
            except Exception:  # keep running: the next attempt can succeed
                log.exception("Could not check the certificates")
            await wait_for_any_event_or_timeout([wakeup], POLL_SECONDS)


async def order_or_query_next_due_certificate(environment: Environment) -> bool:
    """Lease and process the next due certificate. Returns False if there is none."""
    certificate = await lease_next_due_certificate(environment)
    if certificate is None:
        return False
    try:
        with leases.protect_leases_in_use(environment, certificate.lease):
            await _order_or_query_and_store_outcome(environment, certificate)
    except Exception:
        leases.end_lease_at_later_heartbeat(
            environment,
            Certificate,
            is_leased_certificate_sql(certificate),
            delay_seconds=RETRY_AFTER_ERROR_SECONDS,
        )
        raise
    return True


async def _order_or_query_and_store_outcome(
    environment: Environment, certificate: ColumnRow
) -> None:
    """Order the certificate or query when to renew it, and store the outcome.

    Raises the errors of an outage of the storage, which is no failure of the order.
    """
    is_renewed_later = (
        certificate.acme_renew_at is not None and certificate.acme_renew_at > environment.now()
    )
    process, handle_failure = (
        (_update_renewal_time_and_release_lease, store_default_renewal_time_and_release_lease)
        if is_renewed_later
        else (_order_and_store, _store_failure_and_retry_time)
    )
    try:
        await process(environment, certificate)
    except CertificateLeaseLost:
        log.info(
            "Certificate changed at the same time", extra={"serverName": certificate.server_name}
        )
        if not is_renewed_later:
            ORDERS_METRIC.add("lost")
    except AcmeError as problem:
        await handle_failure(environment, certificate, problem)
    except InvalidInput as problem:
        text = f"The issued certificate can't be used: {problem.message}"
        await handle_failure(environment, certificate, AcmeError(text))
    except ServiceUnavailable as problem:
        await handle_failure(environment, certificate, AcmeError(problem.message))
    except TimeoutError:
        minutes = ORDER_TIMEOUT.total_seconds() / 60
        text = f"The ACME server did not finish within {minutes:g} minutes."
        await handle_failure(environment, certificate, AcmeServerUnavailable(text))
    except asyncio.CancelledError:
        await release_lease(environment, certificate)
        raise
    except Exception as problem:
        if storage_failure(problem):
            raise
        log.exception(
            "Certificate order failed with an internal error",
            extra={"serverName": certificate.server_name},
        )
        await handle_failure(
            environment,
            certificate,
            AcmeError("Internal error. The administrator finds the cause in the server log."),
        )


async def _order_and_store(environment: Environment, certificate: ColumnRow) -> None:
    """Order the certificate and store it."""
    log.info("Ordering certificate", extra={"serverName": certificate.server_name})
    async with asyncio.timeout(ORDER_TIMEOUT.total_seconds()):
        issued = await order_certificate(environment, certificate)
    await store_issued_certificate(environment, certificate, issued)
    ORDERS_METRIC.add("issued")
    log.info("Certificate issued", extra={"serverName": certificate.server_name})


async def _update_renewal_time_and_release_lease(
    environment: Environment, certificate: ColumnRow
) -> None:
    """Query the authority for the renewal time and store it."""
    async with asyncio.timeout(ORDER_TIMEOUT.total_seconds()):
        advice = await query_renewal_advice_of_current_authority(environment, certificate)
    unchanged_time = {"acme_next_at": certificate.acme_renew_at}
    await store_values_and_release_lease(
        environment,
        certificate,
        renewal_info_columns(certificate, advice, environment.now()) if advice else unchanged_time,
    )


async def _store_failure_and_retry_time(
    environment: Environment, certificate: ColumnRow, failure: AcmeError
) -> None:
    """Store why the order failed and when it is repeated.

    If the ACME server was unavailable, that does not count as a failed order: the pauses stay
    short, so that the order follows soon after the outage.
    """
    failures, pause = certificate.acme_failures, FIRST_RETRY
    if not isinstance(failure, AcmeServerUnavailable):
        ORDERS_METRIC.add("failed")
        failures += 1
        pause = min(FIRST_RETRY * 2 ** min(failures - 1, 10), MAX_RETRY)
    if failure.code == acme_client.RATE_LIMITED:
        pause = max(pause, RATE_LIMIT_RETRY)
    factor = random.uniform(1 - RETRY_SPREAD, 1 + RETRY_SPREAD)  # noqa: S311
    retry_at: datetime = environment.now() + pause * factor
    log_values = {"serverName": certificate.server_name, "why": str(failure), "failures": failures}
    log.warning("Certificate not issued", extra=log_values)
    values = {
        "acme_state": AcmeState.FAILED,
        "acme_error": str(failure),
        "acme_failures": failures,
        "acme_next_at": retry_at,
        "lease": None,
        "holder": None,
    }
    try:
        await require_lease_and_store_values(environment, certificate, values)
    except CertificateLeaseLost:
        log.info(
            "Certificate changed at the same time", extra={"serverName": certificate.server_name}
        )
