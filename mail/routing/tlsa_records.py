"""TLSA records of a host (DANE: RFC 6698, RFC 7672)."""

from dataclasses import dataclass

from mail.routing.certificate_checks import TlsaRecord
from mail.routing.mx_hosts import OutboundSettings, Unroutable, query_dns_or_raise_unroutable

MAX_RECORDS = 50  # of one host
FIRST_PERMANENT_CODE = 500  # codes from here on mean that the name does not exist


@dataclass(frozen=True, slots=True)
class TlsaAnswer:
    """The usable TLSA records of a host, and True if it has any."""

    usable_records: tuple[TlsaRecord, ...]
    has_records: bool


async def query_signed_tlsa(
    outbound_settings: OutboundSettings, host_names: list[str], port: int
) -> TlsaAnswer:
    """Query the signed TLSA records of the first name that has some.

    Raises Unroutable with 4xx if DNS does not answer; then the host must not be used.
    """
    for name in dict.fromkeys(host_names):
        try:
            answer = await query_dns_or_raise_unroutable(
                outbound_settings, f"_{port}._tcp.{name}", "TLSA"
            )
        except Unroutable as problem:
            if problem.reply_code >= FIRST_PERMANENT_CODE:
                continue
            raise
        if answer.is_signed and answer.records:
            records = [
                TlsaRecord(record.usage, record.selector, record.mtype, bytes(record.cert))
                for record in answer.records[:MAX_RECORDS]
            ]
            return TlsaAnswer(
                tuple(record for record in records if record.is_usable), has_records=True
            )
    return TlsaAnswer((), has_records=False)
