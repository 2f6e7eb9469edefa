"""TLS requirements of next hops: from TLS policies, DANE, MTA-STS and the sender."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from mail.routing import mta_sts, tlsa_records
from mail.routing.certificate_checks import (
    CertificateCheck,
    CertificateRequirement,
    TlsPolicyParameters,
    parse_policy_parameters,
)
from mail.routing.mx_hosts import (
    MxHost,
    NextHop,
    OutboundSettings,
    TlsLevel,
    Unroutable,
    resolve_host,
)
from mail.routing.route_snapshot import RouteCache
from models.errors import InvalidInput
from models.routing.mta_sts import MtaStsMode
from models.routing.tables import TlsPolicy, TlsPolicyLevel

REQUIREMENT_FAILED_CODE = 451  # temporary, since a policy can change
UNENCRYPTED_LEVELS = (TlsLevel.NEVER, TlsLevel.OPPORTUNISTIC)


@dataclass(frozen=True, slots=True)
class MxNextHop:
    """An MX host and the next hop for a connection to it."""

    mx_host: MxHost
    next_hop: NextHop


@dataclass(frozen=True, slots=True)
class TlsRequirement:
    """The TLS requirement of a next hop, or the reason why the host is unusable."""

    next_hop: NextHop | None
    log_line: str
    problem: str = ""


def require_usable_next_hops(
    requirements: Sequence[TlsRequirement], route_log: list[str]
) -> list[NextHop]:
    """The usable next hops. Raises Unroutable with 451 if there is none."""
    route_log += dict.fromkeys(requirement.log_line for requirement in requirements)
    hosts = [requirement.next_hop for requirement in requirements if requirement.next_hop]
    if not hosts:
        last_problem = requirements[-1].problem if requirements else "no usable MX host"
        raise Unroutable(REQUIREMENT_FAILED_CODE, f"4.7.5 {last_problem}")
    return hosts


def enforce_sender_tls(
    next_hops: list[NextHop], route_log: list[str], *, requires_tls: bool
) -> list[NextHop]:
    """The next hops, with TLS enforced if the sender requires it."""
    if not requires_tls:
        return next_hops
    route_log.append("REQUIRETLS: TLS is required")
    requirement = CertificateRequirement(CertificateCheck.NOTHING, source="account")
    return [
        replace(host, tls_level=TlsLevel.ENCRYPTED, certificate_requirement=requirement)
        if host.tls_level in UNENCRYPTED_LEVELS
        else host
        for host in next_hops
    ]


def with_verified_tls(next_hop: NextHop, route_log: list[str]) -> NextHop:
    """The next hop with TLS and a certificate check, for a password.

    A check that the next hop has already is kept, such as that of a fingerprint.
    """
    requirement = next_hop.certificate_requirement
    if requirement.check is CertificateCheck.NOTHING:
        requirement = replace(requirement, check=CertificateCheck.NAMES, source="")
    is_wrapped = next_hop.tls_level is TlsLevel.WRAPPED
    verified = replace(
        next_hop,
        tls_level=TlsLevel.WRAPPED if is_wrapped else TlsLevel.REQUIRED,
        certificate_requirement=requirement,
    )
    if verified != next_hop:
        route_log.append(
            f"TLS to {next_hop.name}: a verified certificate is required, since a password is sent"
        )
    return verified


def with_recipient_policy(
    next_hop: NextHop, policy: TlsPolicy | None, route_log: list[str]
) -> NextHop:
    """A configured relay with the TLS level of the policy for the recipient's domain.

    The certificate is checked for the name of the relay, since it can't have that of the domain.
    """
    log_line = f"TLS to {next_hop.name}: {next_hop.tls_level}"
    if policy is None or policy.level in (TlsPolicyLevel.NONE, TlsPolicyLevel.MAY):
        route_log.append(log_line)
        return next_hop
    minimum_level = (
        TlsLevel.ENCRYPTED if policy.level is TlsPolicyLevel.ENCRYPT else TlsLevel.REQUIRED
    )
    if next_hop.tls_level in UNENCRYPTED_LEVELS or (
        next_hop.tls_level is TlsLevel.ENCRYPTED and minimum_level is TlsLevel.REQUIRED
    ):
        check = (
            CertificateCheck.NOTHING
            if minimum_level is TlsLevel.ENCRYPTED
            else CertificateCheck.NAMES
        )
        next_hop = replace(
            next_hop,
            tls_level=minimum_level,
            certificate_requirement=CertificateRequirement(check, source="policy"),
        )
    route_log.append(
        f"TLS to {next_hop.name}: {next_hop.tls_level}, by the policy {policy.destination}"
    )
    return next_hop


async def requirement_from_policy(
    outbound_settings: OutboundSettings,
    next_hop: NextHop,
    policy: TlsPolicy,
    destination_name: str,
    mx_host: MxHost | None = None,
) -> TlsRequirement:
    """Return the TLS requirement that a TLS policy sets for a next hop.

    If the policy can't be met, the requirement has a `problem` and no `next_hop`.
    """
    level = policy.level
    log_line = f"TLS to {next_hop.name}: {level}, by the policy {policy.destination}"
    has_fingerprints = level is TlsPolicyLevel.FINGERPRINT
    try:
        parameters_ = parse_policy_parameters(
            policy.parameters, expects_fingerprints=has_fingerprints
        )
    except InvalidInput as problem:
        return TlsRequirement(
            None, f"{log_line}, which is invalid", f"The TLS policy is invalid: {problem}"
        )
    if level in (TlsPolicyLevel.DANE, TlsPolicyLevel.DANE_ONLY):
        is_dane_only = level is TlsPolicyLevel.DANE_ONLY
        return await _requirement_from_dane_policy(
            outbound_settings,
            next_hop,
            (destination_name, mx_host),
            parameters_,
            (log_line, is_dane_only),
        )
    if level in (TlsPolicyLevel.NONE, TlsPolicyLevel.MAY):
        weak_level = TlsLevel.NEVER if level is TlsPolicyLevel.NONE else TlsLevel.OPPORTUNISTIC
        # for example because of a password
        keeps_level = next_hop.tls_level not in UNENCRYPTED_LEVELS
        requirement = _with_versions(
            CertificateRequirement(
                next_hop.certificate_requirement.check,
                source=next_hop.certificate_requirement.source,
            ),
            parameters_,
        )
        return TlsRequirement(
            replace(
                next_hop,
                tls_level=next_hop.tls_level if keeps_level else weak_level,
                certificate_requirement=requirement,
            ),
            log_line,
        )
    if has_fingerprints and not parameters_.match_values:
        return TlsRequirement(None, log_line, "The TLS policy has no fingerprint")
    return TlsRequirement(
        _with_policy_level(next_hop, level, parameters_, destination_name), log_line
    )


def _with_policy_level(
    next_hop: NextHop, level: TlsPolicyLevel, params: TlsPolicyParameters, destination_name: str
) -> NextHop:
    """The next hop with the TLS level and certificate check of a policy."""
    if level is TlsPolicyLevel.ENCRYPT:
        return _with_requirement(
            next_hop,
            TlsLevel.ENCRYPTED,
            CertificateRequirement(CertificateCheck.NOTHING, source="policy"),
            params,
        )
    if level is TlsPolicyLevel.FINGERPRINT:
        fingerprints = tuple(bytes.fromhex(match_value) for match_value in params.match_values)
        return _with_requirement(
            next_hop,
            TlsLevel.REQUIRED,
            CertificateRequirement(
                CertificateCheck.PRINTS, fingerprints=fingerprints, source="policy"
            ),
            params,
        )
    default_match = ("hostname",) if level is TlsPolicyLevel.VERIFY else ("nexthop", "dot-nexthop")
    name_by_keyword = {
        "hostname": next_hop.name,
        "nexthop": destination_name,
        "dot-nexthop": f".{destination_name}",
    }
    names = tuple(
        name_by_keyword.get(match_value, match_value)
        for match_value in params.match_values or default_match
    )
    return _with_requirement(
        next_hop,
        TlsLevel.REQUIRED,
        CertificateRequirement(CertificateCheck.NAMES, names, source="policy"),
        params,
    )


def _with_requirement(
    next_hop: NextHop,
    tls_level: TlsLevel,
    requirement: CertificateRequirement,
    params: TlsPolicyParameters,
) -> NextHop:
    """The next hop with this TLS level and requirement. Implicit TLS is kept."""
    level = TlsLevel.WRAPPED if next_hop.tls_level is TlsLevel.WRAPPED else tls_level
    return replace(
        next_hop, tls_level=level, certificate_requirement=_with_versions(requirement, params)
    )


def _with_versions(
    requirement: CertificateRequirement, params: TlsPolicyParameters
) -> CertificateRequirement:
    """The requirement with the TLS versions of the policy parameters."""
    return replace(
        requirement, minimum_version=params.minimum_version, maximum_version=params.maximum_version
    )


async def _requirement_from_dane_policy(
    outbound_settings: OutboundSettings,
    next_hop: NextHop,
    destination_and_mx_host: tuple[str, MxHost | None],
    params: TlsPolicyParameters,
    log_line_and_is_dane_only: tuple[str, bool],
) -> TlsRequirement:
    """The TLS requirement of a next hop with a DANE or DANE_ONLY policy.

    `log_line_and_is_dane_only` has the text for the log, and True for DANE_ONLY.
    """
    log_line, is_dane_only = log_line_and_is_dane_only
    destination_name, mx_host = destination_and_mx_host
    requirement = await _requirement_from_dane_or_none(
        outbound_settings, next_hop, destination_name, mx_host
    )
    if requirement is not None and requirement.next_hop is not None:
        if (
            is_dane_only
            and requirement.next_hop.certificate_requirement.check is not CertificateCheck.TLSA
        ):
            return TlsRequirement(None, log_line, f"No usable TLSA record of {next_hop.name}")
        with_versions = _with_requirement(
            next_hop,
            requirement.next_hop.tls_level,
            requirement.next_hop.certificate_requirement,
            params,
        )
        return TlsRequirement(with_versions, f"{log_line}; {requirement.log_line}")
    if requirement is not None:
        return requirement
    if is_dane_only:
        return TlsRequirement(None, log_line, f"No TLSA record of {next_hop.name}")
    if next_hop.tls_level in UNENCRYPTED_LEVELS:
        no_check = _with_versions(CertificateRequirement(CertificateCheck.NOTHING), params)
        return TlsRequirement(
            replace(next_hop, tls_level=TlsLevel.OPPORTUNISTIC, certificate_requirement=no_check),
            f"{log_line}: no TLSA record",
        )
    return TlsRequirement(
        replace(
            next_hop,
            certificate_requirement=_with_versions(next_hop.certificate_requirement, params),
        ),
        f"{log_line}: no TLSA record",
    )


async def _requirement_from_dane_or_none(
    outbound_settings: OutboundSettings,
    next_hop: NextHop,
    destination_name: str,
    mx_host: MxHost | None,
) -> TlsRequirement | None:
    """The requirement of the TLSA records of a host. None if there are no signed ones."""
    if not outbound_settings.trusts_dnssec:
        return None
    try:
        if mx_host is None:
            answer = await resolve_host(outbound_settings, next_hop.name)
            is_signed, canonical_name = answer.is_signed, answer.canonical_name
        else:
            is_signed, canonical_name = mx_host.is_signed, mx_host.canonical_name
        no_records = tlsa_records.TlsaAnswer((), has_records=False)
        tlsa = (
            await tlsa_records.query_signed_tlsa(
                outbound_settings, [canonical_name, next_hop.name], next_hop.port
            )
            if is_signed
            else no_records
        )
    except Unroutable as problem:
        if mx_host is None and problem.reply_code >= tlsa_records.FIRST_PERMANENT_CODE:
            return None
        text = f"TLSA lookup of {next_hop.name} failed"
        return TlsRequirement(None, f"TLS to {next_hop.name}: {text}", text)
    names = tuple(dict.fromkeys([next_hop.name, canonical_name, destination_name]))
    return _requirement_from_tlsa(next_hop, tlsa, names) if tlsa.has_records else None


def _requirement_from_tlsa(
    next_hop: NextHop, tlsa: tlsa_records.TlsaAnswer, names: tuple[str, ...]
) -> TlsRequirement:
    """The TLS requirement of a host with TLSA records: at least encryption (RFC 7672, section 2.2).

    The certificate must match one of the usable records. If none is usable, TLS is required without
    a check of the certificate.
    """
    if not tlsa.usable_records:
        requirement = CertificateRequirement(CertificateCheck.NOTHING, source="DANE")
        text = (
            f"TLS to {next_hop.name}: encrypted without certificate check, since the "
            "TLSA records are unusable"
        )
        return TlsRequirement(
            replace(next_hop, tls_level=TlsLevel.ENCRYPTED, certificate_requirement=requirement),
            text,
        )
    requirement = CertificateRequirement(
        CertificateCheck.TLSA, names, tlsa.usable_records, source="DANE"
    )
    record_count = len(tlsa.usable_records)
    text = (
        f"TLS to {next_hop.name}: DANE, {record_count} TLSA record{'s' if record_count > 1 else ''}"
    )
    return TlsRequirement(
        replace(next_hop, tls_level=TlsLevel.REQUIRED, certificate_requirement=requirement), text
    )


async def look_up_published_tls_requirements(
    cache: RouteCache, domain: str, mx_next_hops: Sequence[MxNextHop], route_log: list[str]
) -> list[TlsRequirement]:
    """The requirements that a domain publishes for its MX hosts: DANE, else MTA-STS."""
    dane_requirements = [
        await _requirement_from_dane_or_none(cache.outbound_settings, p.next_hop, domain, p.mx_host)
        for p in mx_next_hops
    ]
    policy = None
    if not all(dane_requirements):
        policy, phrase = await cache.load_unless_recently_loaded(
            "sts",
            domain,
            lambda: mta_sts.load_or_fetch_policy(
                cache.environment, cache.outbound_settings, domain
            ),
        )
        mode = f" ({policy.mode})" if policy else ""
        route_log.append(f"MTA-STS of {domain}: {phrase}{mode}")
    return [
        demand or _requirement_from_mta_sts(next_hop.next_hop, policy)
        for next_hop, demand in zip(mx_next_hops, dane_requirements, strict=True)
    ]


def _requirement_from_mta_sts(
    next_hop: NextHop, policy: mta_sts.FetchedStsPolicy | None
) -> TlsRequirement:
    """The requirement of an MTA-STS policy for an MX host."""
    if policy is None or policy.mode is MtaStsMode.NONE:
        return TlsRequirement(next_hop, f"TLS to {next_hop.name}: {next_hop.tls_level}")
    is_listed = policy.is_listed(next_hop.name)
    if policy.mode is MtaStsMode.TESTING:
        note = "" if is_listed else ", not matched by MTA-STS"
        return TlsRequirement(next_hop, f"TLS to {next_hop.name}: {next_hop.tls_level}{note}")
    if not is_listed:
        text = f"The MTA-STS policy does not match {next_hop.name}"
        return TlsRequirement(None, f"TLS to {next_hop.name}: {text}", text)
    requirement = CertificateRequirement(CertificateCheck.NAMES, source="MTA-STS")
    return TlsRequirement(
        replace(next_hop, tls_level=TlsLevel.REQUIRED, certificate_requirement=requirement),
        f"TLS to {next_hop.name}: REQUIRED by MTA-STS",
    )
