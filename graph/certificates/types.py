"""GraphQL types, queries and mutations of certificates. Private keys are never returned."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.types import errors as types_errors
from graph.types import global_ids
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, query
from graph.types.input_conditions import ConditionsInput
from graph.types.mutations import AtomicExclusion, mutation
from graph.types.object_references import ObjectRef, resolve_ids_from_refs_or_raise
from graph.types.object_views import DerivedField
from graph.types.references import maybe_value, value_or_none
from graph.types.row_mapping import NodeView, global_id_field, selected_columns
from mail.tls.acme_client import RevocationReason
from mail.tls.pem_certificates import CertificateInput
from models.certificates import AcmeState
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from resolvers.certificates import acme_revocation
from resolvers.certificates import loaders as certificate_loaders
from resolvers.certificates import mutations as certificate_mutations
from resolvers.certificates.loaders import CertificateConditions, CertificateOrder
from resolvers.certificates.mutations import CertificateValues
from resolvers.certificates.stored_certificates import next_order_time

WRITE_GUARD: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.FULL}


def _fingerprint_with_colons(fingerprint: str | None) -> str | None:
    """Return a hexadecimal fingerprint with a colon after each byte."""
    return fingerprint and ":".join(
        fingerprint[at : at + 2] for at in range(0, len(fingerprint), 2)
    )


@strawberry.type(
    description=(
        "TLS certificate chain with its private key for a server name (SNI, RFC 6066) of the SMTP "
        "servers. It also serves other names in it that have no certificate themselves. A "
        "certificate that is valid now has precedence over one that is not."
    ),
    directives=[Auth(role=Role.ADMIN)],
)
class Certificate(NodeView):
    server_name: str = attribute_field(
        "Server name that the certificate is stored for, in ASCII form and lower case."
    )
    alt_names: list[str] = attribute_field(
        "DNS names in the certificate (subjectAltName, RFC 5280), or its common name if it lacks "
        "that extension. A wildcard covers one label. At most 500. Empty: no certificate was "
        "issued yet, or it has no DNS name."
    )
    description: str | None = attribute_field(
        "Description of the certificate for administrators. Null: none."
    )
    fingerprint: str | None = attribute_field(
        "SHA-1 fingerprint of the certificate in lower-case hex, with a colon after each byte but "
        "the last. Null: no certificate was issued yet."
    )
    fingerprint_sha256: str | None = attribute_field(
        "SHA-256 fingerprint of the certificate in lower-case hex, with a colon after each byte "
        "but the last. Null: no certificate was issued yet."
    )
    issuer: str | None = attribute_field(
        "Distinguished name of the issuer, such as CN=R11,O=Let's Encrypt,C=US, cut to 300 "
        "characters. Null: no certificate was issued yet."
    )
    acme: bool = attribute_field(
        "True if the certificate is ordered and renewed by ACME (RFC 8555)."
    )
    acme_names: list[str] = attribute_field(
        "Names that ACME orders in addition to serverName, in ASCII form. At most 99."
    )
    acme_state: AcmeState | None = attribute_field(
        "State of the certificate's order by ACME. Null: ACME does not order this certificate."
    )
    acme_error: str | None = attribute_field(
        "Text of the last failed order of the certificate: the problem detail of the authority "
        "(RFC 8555), or what failed. Null: no order failed since the last success, "
        "`certificateRenew`, or change of the ACME settings or the certificate by `certificateSet`."
    )
    acme_next_order_at: datetime | None = attribute_field(
        "Time of the next order of the certificate by ACME: of the renewal, or of the retry after "
        "a failure. Null: no order is planned, one is in progress, or `acmeState` is "
        "TERMS_NOT_AGREED."
    )
    created_at: datetime = attribute_field(
        "Time when the certificate was first stored for the server name."
    )
    updated_at: datetime = attribute_field(
        "Time of the last change or ACME step of the certificate."
    )
    starts_at: datetime | None = attribute_field(
        "Time from which the certificate is valid. Null: no certificate was issued yet."
    )
    expires_at: datetime | None = attribute_field(
        "Time when the certificate expires. Null: no certificate was issued yet."
    )

    load_batch = staticmethod(certificate_loaders.load_visible_certificates_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("Certificate"),
        "fingerprint": DerivedField(("sha1",), _fingerprint_with_colons),
        "fingerprint_sha256": DerivedField(("sha256",), _fingerprint_with_colons),
        "acme_next_order_at": DerivedField(
            ("acme_state", "acme_renew_at", "acme_next_at"), next_order_time
        ),
        "starts_at": DerivedField(("not_before",), lambda at: at),
        "expires_at": DerivedField(("not_after",), lambda at: at),
    }


@strawberry.input(one_of=True, description="Reference to one certificate.")
class CertificateRef(ObjectRef):
    server_name: strawberry.Maybe[str] = attribute_field(
        "The `serverName` of the certificate, in Unicode or ASCII form. Other names in the "
        "certificate are not searched."
    )


@strawberry.input(description="Conditions on certificates.")
class CertificateFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Returns only certificates whose server name, in ASCII form, contains this text (case is "
        "ignored). At most 255 printable characters.",
        default=UNSET,
    )
    include_alt_names: bool | None = attribute_field(
        "True compares `query` also with the names in the certificate. A wildcard name matches "
        "the names that it covers. It has no effect without `query`. Default: false.",
        default=UNSET,
    )

    def to_conditions(self) -> CertificateConditions:
        """Convert the filter to conditions of the resolvers."""
        return CertificateConditions(value_or_none(self.query), bool(self.include_alt_names))


@strawberry.input(
    description="Input of certificateSet. Null means the same as an absent field, except for "
    "`description`."
)
class CertificateSetInput(Options):
    server_name: str = attribute_field(
        "Server name (SNI) that the certificate is served for, in Unicode or ASCII form: no IP "
        "address and no wildcard. If the certificate does not contain the name, the payload has a "
        "warning."
    )
    description: str | None = attribute_field(
        "Description for administrators, at most 500 printable characters. Default: "
        "unchanged. Null: none.",
        default=UNSET,
    )
    acme: bool | None = attribute_field(
        "True orders and renews the certificate by ACME (RFC 8555): now, or at the renewal time "
        "of a present certificate that has all `acmeNames`. A present certificate is served until "
        "then. Nothing is ordered until `acme.termsAgreed` is set. False stops the renewal, and "
        "is refused if there is no certificate yet. Default: unchanged; false for a new server "
        "name.",
        default=UNSET,
    )
    acme_names: list[str] | None = attribute_field(
        "Names that ACME orders in addition to `serverName`: at most 99, each with a dot and "
        "without wildcards. They replace the stored names; an empty list removes them. If the "
        "certificate lacks one of them, a new certificate is ordered at once. Names are refused "
        "if ACME is off. Default: unchanged. `acme: false` removes the names.",
        default=UNSET,
    )
    private_key: str | None = attribute_field(
        "Private key of `cert` in PEM, not encrypted: RSA with 2,048 to 8,192 bits, ECDSA (P-256, "
        "P-384, P-521) or EdDSA. Default: the key in `cert`, else the stored key. Refused without "
        "`cert`.",
        default=UNSET,
    )
    cert: str | None = attribute_field(
        "Certificate in PEM, or a bundle of private key, certificate and chain in any order: at "
        "most 20 certificates with those in `ca`. Default: unchanged. Required unless a "
        "certificate is stored or `acme` is true.",
        default=UNSET,
    )
    ca: list[str] | None = attribute_field(
        "Intermediate certificates in PEM, if `cert` does not contain the chain. Certificates "
        "that are not part of the chain are left out with a warning. Refused without `cert`.",
        default=UNSET,
    )


@strawberry.type(description="Payload of certificateSet.")
class CertificatePayload(MutationPayload):
    certificate: Certificate | None = attribute_field(
        "The certificate after the change. Null if the mutation failed.", default=None
    )


@strawberry.input(description="Input of certificateDelete.")
class CertificateDeleteInput(Options):
    certificates: list[CertificateRef] = attribute_field(
        "Certificates to delete, 1 to 1,000 by default."
    )
    revoke: RevocationReason | None = attribute_field(
        "Revokes the certificates at their ACME authorities first, with this "
        f"reason. More than {acme_revocation.MAX_REVOCATIONS} are refused. CONFLICT if ACME did "
        "not issue one of them, or the setting `acme.termsAgreed` is off. If a revocation fails, "
        "or a certificate changes at the same time, no certificate is deleted, and the revoked "
        "ones have `acmeState: REVOKED`. Default: not revoked.",
        default=UNSET,
    )


@strawberry.type(description="Payload of certificateDelete.")
class CertificateDeletePayload(MutationPayload):
    deleted_ids: list[strawberry.ID] = attribute_field(
        "Global IDs of the deleted certificates, each once.", default_factory=list
    )
    revoked_ids: list[strawberry.ID] = attribute_field(
        "Global IDs of the deleted certificates that were revoked. Empty without `revoke`. "
        "Expired certificates and certificates that were never issued are not revoked.",
        default_factory=list,
    )


@strawberry.input(description="Input of certificateRenew.")
class CertificateRenewInput(Options):
    certificates: list[CertificateRef] = attribute_field(
        "Certificates to renew, 1 to 1,000 by default."
    )


@strawberry.type(description="Payload of certificateRenew.")
class CertificatesPayload(MutationPayload):
    certificates: list[Certificate] = attribute_field(
        "The certificates to renew, in the order of the references, with their old content.",
        default_factory=list,
    )


@strawberry.type
class CertificateQuery:
    @query(
        "Returns a TLS certificate by ID, or by exactly the `serverName` that it is stored for. "
        "Other names in the certificate, and wildcards, are not searched. Null if there is none.",
        role=Role.ADMIN,
        scope=Scope.READ,
    )
    async def certificate(self, info: Info, by: CertificateRef) -> Certificate | None:
        if by.id:
            key = global_ids.decode("Certificate", by.id.value, path="by")
            return Certificate.from_row_or_none(
                await info.context.load(certificate_loaders.load_visible_certificates_by_id, key)
            )
        return Certificate.from_row_or_none(
            await certificate_loaders.find_visible_certificate_by_server_name(
                info.context, maybe_value(by.server_name)
            )
        )

    @query(
        "Returns the TLS certificates of the platform, also those that ACME has not issued yet. "
        "Certificates in files of the server are not contained.",
        role=Role.ADMIN,
        scope=Scope.READ,
    )
    async def certificates(
        self,
        info: Info,
        filter: CertificateFilter | None = UNSET,
        order_by: CertificateOrder = CertificateOrder.CREATED_AT_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Certificate]:
        conditions = filter.to_conditions() if filter else CertificateConditions()
        list_ordering = ordering_name(
            f"certificates-{order_by}",
            None if conditions == CertificateConditions() else conditions,
        )
        list_order = certificate_loaders.LIST_ORDERS[order_by]
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            Certificate,
            await certificate_loaders.read_visible_certificate_page(
                info.context,
                conditions,
                requested_page,
                selected_columns(info, Certificate),
                order_by,
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: certificate_loaders.count_visible_certificates(info.context, conditions),
        )


@strawberry.type
class CertificateMutation:
    @mutation(
        "Stores a certificate for a server name, or changes the stored one, its description or "
        "its ACME settings. New SMTP connections use a stored certificate within 15 seconds, "
        "without a restart. A certificate by ACME follows later. The private key must belong to "
        "the certificate and is never returned. Warnings name problems that clients can have, "
        "such as an expired certificate. LIMIT_REACHED above 2,000 certificates. CONFLICT if "
        "another request changes the certificate at the same time: retry. UNAVAILABLE if `cert` "
        "is given without `privateKey`, and the stored private key can't be decrypted.",
        **WRITE_GUARD,
    )
    async def certificate_set(self, info: Info, input: CertificateSetInput) -> CertificatePayload:
        key, notices = await certificate_mutations.set_certificate(
            info.context, _certificate_values_from_input(input)
        )
        row = await info.context.load(certificate_loaders.load_visible_certificates_by_id, key)
        warnings = [
            types_errors.Warning(code=notice.code, message=notice.message, path=[notice.field])
            for notice in notices
        ]
        return CertificatePayload(certificate=Certificate.from_row_or_none(row), warnings=warnings)

    @mutation(
        "Deletes certificates and their private keys, all or none. Open connections are not "
        "affected. With `revoke`, CONFLICT if ACME did not issue a certificate, "
        "`acme.termsAgreed` is not set, or a certificate changes at the same time. UNAVAILABLE if "
        "the ACME server does not revoke it, VALIDATION if it refuses the reason. LIMIT_REACHED "
        "for more than 1,000 references (by default).",
        atomic_exclusion=AtomicExclusion(
            "A revocation", "With `revoke`", applies_to=lambda given: bool(given.revoke)
        ),
        **WRITE_GUARD,
    )
    async def certificate_delete(
        self, info: Info, input: CertificateDeleteInput
    ) -> CertificateDeletePayload:
        keys = await _resolve_certificate_ids_or_raise(info, input.certificates)
        revoked = await certificate_mutations.delete_certificates_and_return_revoked_ids(
            info.context, keys, value_or_none(input.revoke)
        )
        return CertificateDeletePayload(
            deleted_ids=global_ids.encode_distinct("Certificate", keys),
            revoked_ids=global_ids.encode_distinct("Certificate", revoked),
        )

    @mutation(
        "Queues the renewal of certificates by ACME now, all or none. Earlier failures and the "
        "waiting time after them are ignored. CONFLICT if ACME does not manage one of the "
        "certificates. While the setting `acme.termsAgreed` is off, the renewal waits without an "
        "error, and `acmeState` is TERMS_NOT_AGREED. The renewed certificate has the same private "
        "key. `acmeState` and `acmeError` show the result later. LIMIT_REACHED for more than 1,000 "
        "references (by default).",
        **WRITE_GUARD,
    )
    async def certificate_renew(
        self, info: Info, input: CertificateRenewInput
    ) -> CertificatesPayload:
        keys = await _resolve_certificate_ids_or_raise(info, input.certificates)
        await certificate_mutations.schedule_renewals_now(info.context, keys)
        rows: Sequence[Any] = await info.context.load_many(
            certificate_loaders.load_visible_certificates_by_id, keys
        )
        return CertificatesPayload(certificates=[Certificate.from_row(row) for row in rows if row])


async def _resolve_certificate_ids_or_raise(
    info: Info, refs: Sequence[CertificateRef]
) -> list[int]:
    """Return the row IDs of references. Raises NotFound if a server name has no certificate."""
    return await resolve_ids_from_refs_or_raise(
        info,
        refs,
        "certificates",
        name_field="server_name",
        load_ids=certificate_loaders.load_visible_ids_by_server_name,
    )


def _certificate_values_from_input(input: CertificateSetInput) -> CertificateValues:
    """Convert the input to the request to store a certificate or to get it by ACME."""
    cert = value_or_none(input.cert)
    key = value_or_none(input.private_key)
    ca = value_or_none(input.ca)
    certificate = None
    if cert is not None or key is not None or ca:
        certificate = CertificateInput(cert or "", key, tuple(ca or ()))
    has_description, names = input.description is not UNSET, value_or_none(input.acme_names)
    return CertificateValues(
        input.server_name,
        certificate,
        value_or_none(input.acme),
        value_or_none(input.description),
        has_description,
        None if names is None else tuple(names),
    )
