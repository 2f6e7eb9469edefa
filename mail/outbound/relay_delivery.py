"""Delivery to the relays and webhooks that addresses forward to.

Users name these hosts, so addresses of internal networks are refused unless a setting allows them.
The connection goes to the IP address that was checked.
"""

import ssl
from dataclasses import replace
from http import HTTPStatus
from urllib.parse import quote

from mail.envelope.delivery_jobs import DeliveryJob, DeliveryResult
from mail.network.outbound_http import (
    DEFAULT_PORTS,
    HttpRequestFailed,
    NetworkPolicy,
    parse_http_target,
    post_and_return_status,
    status_problem,
)
from mail.outbound.wire_format import StreamedBytes, WireMessage
from mail.queue.enqueue import secret_context
from mail.routing.mx_hosts import NextHop, Unroutable, parse_next_hop
from models.errors import InvalidInput
from models.queue.tables import DeliveryState
from models.runtime.environment import Environment
from models.runtime.secret_box import DecryptionError

MAX_ADDRESSES = 3  # attempted for one relay
TEMPORARY_STATUSES = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
)  # the 4xx codes that are retried
UNREADABLE_URL_TEXT = "4.3.5 The address of the relay can't be parsed"


def is_webhook(job: DeliveryJob) -> bool:
    """True if the job goes to a webhook by HTTP."""
    return (
        bool(job.endpoint_url)
        and str(job.endpoint_url).partition("://")[0].lower() in DEFAULT_PORTS
    )


def forward_network_policy(
    environment: Environment, trusted_context: ssl.SSLContext | None
) -> NetworkPolicy:
    """The network policy for the hosts that users forward mail to."""
    options = environment.options
    return NetworkPolicy.from_options(
        options,
        allows_private=options.forwards_allow_private_networks,
        trusted_context=trusted_context,
    )


def _decrypt_endpoint_url(environment: Environment, job: DeliveryJob) -> str:
    """Decrypt the URL of the relay or webhook. Raises Unroutable if that fails."""
    recipient = job.recipients[0]
    try:
        return environment.secret_box.decrypt(
            recipient.secret or "", secret_context(recipient.delivery_id)
        )
    except DecryptionError:
        raise Unroutable(451, UNREADABLE_URL_TEXT) from None


async def resolve_relay(
    environment: Environment, job: DeliveryJob, network_policy: NetworkPolicy
) -> list[NextHop]:
    """Resolve the relay of a job to hosts to connect to.

    Raises Unroutable if the URL is invalid or there is no allowed address.
    """
    try:
        relay = parse_next_hop(_decrypt_endpoint_url(environment, job))
    except InvalidInput as problem:
        raise Unroutable(550, f"5.3.5 {problem.message}") from problem
    try:
        addresses = await network_policy.resolve_allowed(relay.name, relay.port)
    except HttpRequestFailed as problem:
        raise Unroutable(451, f"4.4.4 {relay.name}: {problem}") from problem
    return [replace(relay, address=address) for address in addresses[:MAX_ADDRESSES]]


async def post_to_webhook(
    environment: Environment, job: DeliveryJob, message: WireMessage, network_policy: NetworkPolicy
) -> DeliveryResult:
    """Post a message to a webhook: the message is the body, the envelope is in header fields.

    Raises TypeError if the message is streamed.
    """
    if isinstance(message.data, StreamedBytes):
        raise TypeError("a webhook needs the whole message in memory")
    headers = {
        "Content-Type": "message/rfc822",
        "X-Envelope-From": _percent_encoded(job.sender),
        "X-Envelope-To": _percent_encoded(job.recipients[0].address),
    }
    try:
        target_url = parse_http_target(
            _decrypt_endpoint_url(environment, job), allow_private=network_policy.allows_private
        )
        status = await post_and_return_status(target_url, headers, message.data, network_policy)
    except (InvalidInput, HttpRequestFailed, Unroutable) as problem:
        return DeliveryResult.from_refusal(451, f"4.4.1 {problem}", job.endpoint_url)
    problem_text = status_problem(status)
    if problem_text is None:
        return DeliveryResult(
            DeliveryState.RELAYED, 250, f"2.0.0 status {status}", job.endpoint_url
        )
    is_permanent = status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in TEMPORARY_STATUSES
    code, text = (550, "5.3.0") if is_permanent else (451, "4.3.0")
    return DeliveryResult.from_refusal(code, f"{text} {problem_text}", job.endpoint_url)


def _percent_encoded(address: str) -> str:
    """An address for an HTTP header field: non-ASCII characters as in RFC 3986, section 2.1."""
    return quote(address, safe="!#$&'*+/=?^_`{|}~@.-")
