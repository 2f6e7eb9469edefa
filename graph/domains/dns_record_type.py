"""The GraphQL type of the DNS records that a domain should have."""

from collections.abc import Mapping
from typing import ClassVar

import strawberry

from graph.types.errors import attribute_field
from graph.types.object_views import DerivedField, View
from mail.domains.dns_advice import DnsState
from models.domains.dns_record_values import DnsRecordKind, DnsRecordPurpose


@strawberry.type(description="DNS record that a domain should have, and its comparison with DNS.")
class DnsRecord(View):
    type: DnsRecordKind = attribute_field("DNS record type, such as MX or TXT.")
    name: str = attribute_field("Full DNS name of the record in ASCII form, without the last dot.")
    value: str | None = attribute_field(
        "Value that the record should have. Null: the server lacks a setting or key, does not "
        "offer the service, or does not know the value, such as its own address."
    )
    purpose: DnsRecordPurpose = attribute_field(
        "Purpose of the record, such as delivery or authentication."
    )
    state: DnsState = attribute_field("Comparison of DNS with the expected record.")
    found: list[str] = attribute_field(
        "Values that DNS has for the name and type of the record; for SPF only SPF records. At "
        "most 10, each cut after 1,000 characters. Empty with the state MISSING: DNS has no such "
        "record. Empty with the state UNKNOWN: DNS was not queried, or did not answer."
    )
    problem: str | None = attribute_field(
        "Reason for the state UNKNOWN. If `value` is null and `state` is not OK: what to configure "
        "or publish, or that the server does not offer the service. Null in other cases."
    )
    optional_reason: str | None = attribute_field(
        "Reason why the domain does not need the record. Null: the record is required, unless the "
        "server does not offer its service (see `problem`)."
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        **{
            name: DerivedField(("advice",), lambda advice, name=name: getattr(advice, name))
            for name in ("type", "name", "value", "purpose", "optional_reason")
        },
        "state": DerivedField(("check",), lambda check: check.state),
        "found": DerivedField(("check",), lambda check: list(check.found)),
        "problem": DerivedField(("check",), lambda check: check.problem),
    }
