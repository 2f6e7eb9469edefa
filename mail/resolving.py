"""Which name server is asked."""

from dns.asyncresolver import Resolver


def resolver(place: str | None) -> Resolver:
    """One that asks at "127.0.0.1:53" or "[::1]:53"; without a place, those of the system.

    Raises dns.resolver.NoResolverConfiguration where the system names none.
    """
    if place is None:
        return Resolver()
    made = Resolver(configure=False)
    host, _, port = place.rpartition(":")
    made.nameservers = [host.removeprefix("[").removesuffix("]")]
    made.port = int(port)
    return made
