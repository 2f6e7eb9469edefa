"""TLSA records of a host (DANE: RFC 6698, RFC 7672)."""

from dataclasses import dataclass

from mail.routing.certificate_checks import Tlsa
from mail.routing.mx_hosts import Route, Unroutable, ask

MOST = 50  # of one host
NXDOMAIN = 500  # codes from here on mean that the name does not exist


@dataclass(frozen=True, slots=True)
class Named:
    """The usable TLSA records of a host, and True if it has any."""

    records: tuple[Tlsa, ...]
    any: bool


async def named(route: Route, names: list[str], port: int) -> Named:
    """Query the signed TLSA records of the first name that has some.

    Raises Unroutable with 4xx if DNS does not answer; then the host must not be used.
    """
    for name in dict.fromkeys(names):
        try:
            found = await ask(route, f"_{port}._tcp.{name}", "TLSA")
        except Unroutable as problem:
            if problem.code >= NXDOMAIN:
                continue
            raise
        if found.secure and found.records:
            every = [
                Tlsa(record.usage, record.selector, record.mtype, bytes(record.cert))
                for record in found.records[:MOST]
            ]
            return Named(tuple(record for record in every if record.usable), any=True)
    return Named((), any=False)
