"""What DNS says of the certificates of a server (DANE: RFC 6698, RFC 7672)."""

from dataclasses import dataclass

from mail.routing.certificate_checks import Tlsa
from mail.routing.mx_hosts import Route, Unroutable, ask

MOST = 50  # records of a server that are looked at
NXDOMAIN = 500  # codes from here on say that there is none


@dataclass(frozen=True, slots=True)
class Named:
    """The records of a server: those that can be used, and whether there are any."""

    records: tuple[Tlsa, ...]
    any: bool


async def named(route: Route, names: list[str], port: int) -> Named:
    """The signed records of a server, under the first of its names that has some.

    Unroutable with 4xx where DNS does not say: then the server is not to be used.
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
                Tlsa(each.usage, each.selector, each.mtype, bytes(each.cert))
                for each in found.records[:MOST]
            ]
            return Named(tuple(each for each in every if each.usable), any=True)
    return Named((), any=False)
