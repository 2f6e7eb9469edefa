"""TLS requirements of next hops: from TLS policies, DANE, MTA-STS and the sender."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mail.routing import mta_sts, tlsa_records
from mail.routing.certificate_checks import Check, Parameters, Proof, parameters
from mail.routing.mx_hosts import Host, Route, Server, Tls, Unroutable, signed_addresses
from mail.routing.route_snapshot import Chart
from models.errors import Invalid
from models.routing.mta_sts import StsMode
from models.routing.tables import TlsPolicy, TlsPolicyLevel

UNFIT = 451  # temporary, since a policy can change
CLEAR = (Tls.NEVER, Tls.OPPORTUNISTIC)


@dataclass(frozen=True, slots=True)
class Place:
    """An MX host and the next hop for a connection to it."""

    server: Server
    host: Host


@dataclass(frozen=True, slots=True)
class Demand:
    """The TLS requirement of a next hop, or the reason why the host is unusable."""

    host: Host | None
    told: str
    problem: str = ""


def standing(demands: Sequence[Demand], trail: list[str]) -> list[Host]:
    """The usable next hops. Raises Unroutable with 451 if there is none."""
    trail += dict.fromkeys(requirement.told for requirement in demands)
    hosts = [requirement.host for requirement in demands if requirement.host]
    if not hosts:
        last = demands[-1].problem if demands else "no server is left"
        raise Unroutable(UNFIT, f"4.7.5 {last}")
    return hosts


def required(hosts: list[Host], trail: list[str], *, wanted: bool) -> list[Host]:
    """The next hops, with TLS enforced if the sender requires it."""
    if not wanted:
        return hosts
    trail.append("the sender wants TLS, or nothing is sent")
    why = Proof(Check.NOTHING, why="account")
    return [
        replace(host, tls=Tls.ENCRYPTED, proof=why) if host.tls in CLEAR else host for host in hosts
    ]


def of_another(host: Host, policy: TlsPolicy | None, trail: list[str]) -> Host:
    """A configured relay with the TLS level of the policy for the recipient's domain.

    The certificate is checked for the name of the relay, since it can't have that of the domain.
    """
    told = f"TLS to {host.name}: {host.tls}"
    if policy is None or policy.policy in (TlsPolicyLevel.NONE, TlsPolicyLevel.MAY):
        trail.append(told)
        return host
    least = Tls.ENCRYPTED if policy.policy is TlsPolicyLevel.ENCRYPT else Tls.REQUIRED
    if host.tls in CLEAR or (host.tls is Tls.ENCRYPTED and least is Tls.REQUIRED):
        check = Check.NOTHING if least is Tls.ENCRYPTED else Check.NAMES
        host = replace(host, tls=least, proof=Proof(check, why="policy"))
    trail.append(f"TLS to {host.name}: {host.tls}, by the policy {policy.destination}")
    return host


async def by_policy(
    route: Route, host: Host, policy: TlsPolicy, nexthop: str, server: Server | None = None
) -> Demand:
    """The TLS requirement that a TLS policy sets for a next hop."""
    level = policy.policy
    told = f"TLS to {host.name}: {level}, by the policy {policy.destination}"
    prints = level is TlsPolicyLevel.FINGERPRINT
    try:
        params = parameters(policy.parameters, prints=prints)
    except Invalid as problem:
        return Demand(None, f"{told}, which cannot be read", f"The policy: {problem}")
    if level in (TlsPolicyLevel.DANE, TlsPolicyLevel.DANE_ONLY):
        only = level is TlsPolicyLevel.DANE_ONLY
        return await _dane(route, host, (nexthop, server), params, (told, only))
    if level in (TlsPolicyLevel.NONE, TlsPolicyLevel.MAY):
        weak = Tls.NEVER if level is TlsPolicyLevel.NONE else Tls.OPPORTUNISTIC
        kept = host.tls not in CLEAR  # for example because of a password
        proof = _limited(Proof(host.proof.check, why=host.proof.why), params)
        return Demand(replace(host, tls=host.tls if kept else weak, proof=proof), told)
    if prints and not params.match:
        return Demand(None, told, "The policy names no fingerprint")
    return Demand(_checked(host, level, params, nexthop), told)


def _checked(host: Host, level: TlsPolicyLevel, params: Parameters, nexthop: str) -> Host:
    """The next hop with the TLS level and certificate check of a policy."""
    if level is TlsPolicyLevel.ENCRYPT:
        return _with(host, Tls.ENCRYPTED, Proof(Check.NOTHING, why="policy"), params)
    if level is TlsPolicyLevel.FINGERPRINT:
        prints = tuple(bytes.fromhex(match_value) for match_value in params.match)
        return _with(host, Tls.REQUIRED, Proof(Check.PRINTS, prints=prints, why="policy"), params)
    usual = ("hostname",) if level is TlsPolicyLevel.VERIFY else ("nexthop", "dot-nexthop")
    meant = {"hostname": host.name, "nexthop": nexthop, "dot-nexthop": f".{nexthop}"}
    names = tuple(meant.get(match_value, match_value) for match_value in params.match or usual)
    return _with(host, Tls.REQUIRED, Proof(Check.NAMES, names, why="policy"), params)


def _with(host: Host, tls: Tls, proof: Proof, params: Parameters) -> Host:
    """The next hop with this TLS level and requirement. Implicit TLS is kept."""
    wrapped = Tls.WRAPPED if host.tls is Tls.WRAPPED else tls
    return replace(host, tls=wrapped, proof=_limited(proof, params))


def _limited(proof: Proof, params: Parameters) -> Proof:
    """The requirement with the TLS versions of the policy parameters."""
    return replace(proof, least=params.least, most=params.most)


async def _dane(
    route: Route,
    host: Host,
    names: tuple[str, Server | None],
    params: Parameters,
    told: tuple[str, bool],
) -> Demand:
    """The TLS requirement of a next hop with a DANE or DANE_ONLY policy.

    `line_and_only` has the text for the log, and True for DANE_ONLY.
    """
    text, only = told
    nexthop, server = names
    demand = await _by_dns(route, host, nexthop, server)
    if demand is not None and demand.host is not None:
        if only and demand.host.proof.check is not Check.TLSA:
            return Demand(None, text, f"DNS names no certificate of {host.name} we can check")
        found = _with(host, demand.host.tls, demand.host.proof, params)
        return Demand(found, f"{text}; {demand.told}")
    if demand is not None:
        return demand
    if only:
        return Demand(None, text, f"DNS names no certificate of {host.name}")
    if host.tls in CLEAR:
        nothing = _limited(Proof(Check.NOTHING), params)
        return Demand(replace(host, tls=Tls.OPPORTUNISTIC, proof=nothing), f"{text}: none in DNS")
    return Demand(replace(host, proof=_limited(host.proof, params)), f"{text}: none in DNS")


async def _by_dns(route: Route, host: Host, nexthop: str, server: Server | None) -> Demand | None:
    """The requirement of the TLSA records of a host. None if there are no signed ones."""
    if not route.validates:
        return None
    try:
        if server is None:
            found = await signed_addresses(route, host.name)
            secure, canonical = found.secure, found.name
        else:
            secure, canonical = server.secure, server.canonical
        none = tlsa_records.Named((), any=False)
        named = (
            await tlsa_records.named(route, [canonical, host.name], host.port) if secure else none
        )
    except Unroutable as problem:
        if server is None and problem.code >= tlsa_records.NXDOMAIN:
            return None
        text = f"DNS does not say which certificate {host.name} has"
        return Demand(None, f"TLS to {host.name}: {text}", text)
    names = tuple(dict.fromkeys([host.name, canonical, nexthop]))
    return _shown(host, named, names) if named.any else None


def _shown(host: Host, named: tlsa_records.Named, names: tuple[str, ...]) -> Demand:
    """The requirement of TLSA records: at least encryption (RFC 7672, section 2.2)."""
    if not named.records:
        proof = Proof(Check.NOTHING, why="DANE")
        text = f"TLS to {host.name}: encrypted, by records in DNS that cannot be checked"
        return Demand(replace(host, tls=Tls.ENCRYPTED, proof=proof), text)
    proof = Proof(Check.TLSA, names, named.records, why="DANE")
    many = len(named.records)
    text = f"TLS to {host.name}: DANE, {many} record{'s' if many > 1 else ''} in DNS"
    return Demand(replace(host, tls=Tls.REQUIRED, proof=proof), text)


async def by_domain(
    chart: Chart, domain: str, places: Sequence[Place], trail: list[str]
) -> list[Demand]:
    """The requirements that a domain publishes for its MX hosts: DANE, else MTA-STS."""
    signed = [await _by_dns(chart.route, p.host, domain, p.server) for p in places]
    policy = None
    if not all(signed):
        policy, told = await chart.once(
            "sts", domain, lambda: mta_sts.policy(chart.world, chart.route, domain)
        )
        mode = f" ({policy.mode})" if policy else ""
        trail.append(f"MTA-STS of {domain}: {told}{mode}")
    return [
        demand or _by_sts(place.host, policy) for place, demand in zip(places, signed, strict=True)
    ]


def _by_sts(host: Host, policy: mta_sts.Policy | None) -> Demand:
    """The requirement of an MTA-STS policy for an MX host."""
    if policy is None or policy.mode is StsMode.NONE:
        return Demand(host, f"TLS to {host.name}: {host.tls}")
    known = policy.names(host.name)
    if policy.mode is StsMode.TESTING:
        beside = "" if known else ", though MTA-STS does not name it"
        return Demand(host, f"TLS to {host.name}: {host.tls}{beside}")
    if not known:
        text = f"MTA-STS does not name {host.name}"
        return Demand(None, f"TLS to {host.name}: {text}", text)
    proof = Proof(Check.NAMES, why="MTA-STS")
    return Demand(
        replace(host, tls=Tls.REQUIRED, proof=proof), f"TLS to {host.name}: REQUIRED by MTA-STS"
    )
