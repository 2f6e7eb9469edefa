"""Delivery to the relays and webhooks that addresses forward to.

Users name these hosts, so addresses of internal networks are refused unless a setting allows them.
The connection goes to the IP address that was checked.
"""

from dataclasses import replace
from http import HTTPStatus
from urllib.parse import quote

from mail.envelope.delivery_jobs import Job, Result
from mail.network.outbound_http import PORTS, Gate, Unsent, post, refused, target
from mail.outbound.wire_format import Flow, Letter
from mail.queue.enqueue import sealed_for
from mail.routing.mx_hosts import Host, Unroutable, next_hop
from models.errors import Invalid
from models.queue.tables import DeliveryState
from models.runtime.environment import World
from models.runtime.secret_box import Sealed

TRIED = 3  # attempted for one relay
PASSING = (
    HTTPStatus.REQUEST_TIMEOUT,
    HTTPStatus.TOO_MANY_REQUESTS,
)  # the 4xx codes that are retried
BROKEN = "4.3.5 Its address cannot be read"


def is_page(job: Job) -> bool:
    """True if the job goes to a webhook by HTTP."""
    return bool(job.via) and str(job.via).partition("://")[0].lower() in PORTS


def _whole(world: World, job: Job) -> str:
    """Decrypt the URL of the relay or webhook. Raises Unroutable if that fails."""
    to = job.recipients[0]
    try:
        return world.vault.open(to.secret or "", sealed_for(to.delivery_id))
    except Sealed:
        raise Unroutable(451, BROKEN) from None


async def relays(world: World, job: Job, gate: Gate) -> list[Host]:
    """Resolve the relay of a job to hosts to connect to.

    Raises Unroutable if the URL is invalid or there is no allowed address.
    """
    try:
        named = next_hop(_whole(world, job))
    except Invalid as problem:
        raise Unroutable(550, f"5.3.5 {problem.message}") from problem
    try:
        found = await gate.allowed(named.name, named.port)
    except Unsent as problem:
        raise Unroutable(451, f"4.4.4 {named.name}: {problem}") from problem
    return [replace(named, address=address) for address in found[:TRIED]]


async def posted(world: World, job: Job, letter: Letter, gate: Gate) -> Result:
    """Post a message to a webhook: the message is the body, the envelope is in header fields.

    Raises TypeError if the message is streamed.
    """
    if isinstance(letter.data, Flow):
        raise TypeError("a page is sent it whole")
    headers = {
        "Content-Type": "message/rfc822",
        "X-Envelope-From": _field(job.sender),
        "X-Envelope-To": _field(job.recipients[0].address),
    }
    try:
        to = target(_whole(world, job), private=gate.private)
        status = await post(to, headers, letter.data, gate)
    except (Invalid, Unsent, Unroutable) as problem:
        return Result.refused(451, f"4.4.1 {problem}", job.via)
    wrong = refused(status)
    if wrong is None:
        return Result(DeliveryState.RELAYED, 250, f"2.0.0 status {status}", job.via)
    final = status < HTTPStatus.INTERNAL_SERVER_ERROR and status not in PASSING
    code, text = (550, "5.3.0") if final else (451, "4.3.0")
    return Result.refused(code, f"{text} {wrong}", job.via)


def _field(address: str) -> str:
    """An address for an HTTP header field: non-ASCII characters as in RFC 3986, section 2.1."""
    return quote(address, safe="!#$&'*+/=?^_`{|}~@.-")
