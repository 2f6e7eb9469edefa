"""Kinds and purposes of the DNS records that a domain should have."""

from enum import StrEnum


class DnsRecordKind(StrEnum):
    """The type of a DNS record."""

    A = "A"
    AAAA = "AAAA"
    CNAME = "CNAME"
    MX = "MX"
    PTR = "PTR"
    SRV = "SRV"
    TLSA = "TLSA"
    TXT = "TXT"


class DnsRecordPurpose(StrEnum):
    """What a DNS record of a domain is for."""

    HOST_ADDRESS = "HOST_ADDRESS"
    REVERSE_DNS = "REVERSE_DNS"
    MX = "MX"
    SPF = "SPF"
    DKIM = "DKIM"
    DKIM_PENDING = "DKIM_PENDING"
    DMARC = "DMARC"
    MTA_STS = "MTA_STS"
    MTA_STS_HOST = "MTA_STS_HOST"
    TLS_RPT = "TLS_RPT"
    DANE = "DANE"
    AUTOCONFIG = "AUTOCONFIG"
    AUTODISCOVER = "AUTODISCOVER"
    IMAPS = "IMAPS"
    SUBMISSIONS = "SUBMISSIONS"
