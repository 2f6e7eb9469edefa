"""GraphQL types, queries and mutations of certificates. Private keys are never returned."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.types import errors as types_errors
from graph.types import global_ids
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import IdsInput, MutationPayload, Options, leaf
from graph.types.fields import Auth, Info, query
from graph.types.mutations import Alone, mutation
from graph.types.object_views import Made
from graph.types.references import given, keys_of, plain
from graph.types.row_mapping import Shape, columns, identified
from mail.tls.acme_client import Reason
from mail.tls.pem_certificates import Sent
from models.store.keyset_pages import Cursor
from models.users.roles import Role, Scope
from resolvers.certificates import acme_revocation, certificates
from resolvers.certificates.certificates import OLDEST, Given, Where

WRITES: dict[str, Any] = {"role": Role.ADMIN, "scope": Scope.MASTER}


def _colons(text: str | None) -> str | None:
    """Return a hexadecimal fingerprint with a colon after each byte."""
    return text and ":".join(text[at : at + 2] for at in range(0, len(text), 2))


@strawberry.type(
    description="What a server shows to who asks for its name by TLS: key and certificate. It "
    "serves other names in it, too, where these have none of their own.",
    directives=[Auth(role=Role.ADMIN)],
)
class Certificate(Shape):
    server_name: str = leaf("Name of the server, in ASCII form.")
    alt_names: list[str] = leaf("Names in the certificate; *. stands for one label.")
    description: str | None = leaf("For administrators.")
    fingerprint: str | None = leaf("SHA-1, in hex with colons; null = none was issued yet.")
    fingerprint_sha256: str | None = leaf("SHA-256, likewise.")
    issuer: str | None = leaf("Who signed it, such as CN=R11,O=Let's Encrypt,C=US.")
    acme: bool = leaf("Renewed by itself.")
    acme_names: list[str] = leaf("Names that ACME puts into it beside serverName, in ASCII form.")
    acme_state: str | None = leaf("Last step or error.")
    created_at: datetime = leaf("Creation.")
    updated_at: datetime = leaf("Last change or step.")
    begins_at: datetime | None = leaf("Valid from.")
    expires_at: datetime | None = leaf("Valid until.")

    batch = staticmethod(certificates.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("Certificate"),
        "fingerprint": Made(("sha1",), _colons),
        "fingerprint_sha256": Made(("sha256",), _colons),
        "begins_at": Made(("not_before",), lambda at: at),
        "expires_at": Made(("not_after",), lambda at: at),
    }


@strawberry.input(one_of=True, description="Names one certificate.")
class CertificateRef:
    id: strawberry.Maybe[strawberry.ID] = leaf("Global id.")
    server_name: strawberry.Maybe[str] = leaf("Exactly the name it is stored for, in any form.")


@strawberry.input(description="Input of certificateSet.")
class CertificateSetInput(Options):
    server_name: str = leaf("Name it is served for, also where it does not stand in it.")
    description: str | None = leaf("For administrators; absent = unchanged.", default=UNSET)
    acme: bool | None = leaf(
        "Key and certificate are made by ACME, and renewed; those sent are served until then.",
        default=False,
    )
    acme_names: list[str] | None = leaf(
        "Names that ACME puts into it beside serverName, at most 100 with that; those that do not "
        "stand in it yet are ordered at once. Absent = unchanged; without acme there are none.",
        default=UNSET,
    )
    private_key: str | None = leaf(
        "PEM, not encrypted: of RSA with 2048 bits or more, ECDSA or EdDSA. Absent = it lies in "
        "cert, or stays.",
        default=UNSET,
    )
    cert: str | None = leaf(
        "PEM; may be a bundle of key, certificate and chain in any order. Absent = unchanged.",
        default=UNSET,
    )
    ca: list[str] | None = leaf("PEM of the chain, where cert has it not.", default=UNSET)


@strawberry.type(description="Answer of certificateSet.")
class CertificatePayload(MutationPayload):
    certificate: Certificate | None = leaf("As it is now.", default=None)


@strawberry.input(description="Input of certificateDelete.")
class CertificateDeleteInput(Options):
    ids: list[strawberry.ID] = leaf("Global ids.")
    revoke: Reason | None = leaf(
        "Those that ACME has made are revoked by their authorities before, at most "
        f"{acme_revocation.MOST} at a time; where one is not, nothing is deleted, and what was "
        "revoked before it says so in its acmeState.",
        default=UNSET,
    )


@strawberry.type(description="Answer of certificateDelete.")
class CertificateDeletePayload(MutationPayload):
    deleted_ids: list[strawberry.ID] = leaf("What is gone.", default_factory=list)
    revoked_ids: list[strawberry.ID] = leaf(
        "Of those, what was revoked; others had ended, or had never been issued.",
        default_factory=list,
    )


@strawberry.type(description="Answer of certificateRenew.")
class CertificateRenewPayload(MutationPayload):
    certificates: list[Certificate] = leaf("As they are now.", default_factory=list)


@strawberry.type
class CertificateQuery:
    @query("A certificate; null where there is none.", role=Role.ADMIN, scope=Scope.READ)
    async def certificate(self, info: Info, by: CertificateRef) -> Certificate | None:
        if by.id:
            key = global_ids.decode("Certificate", by.id.value, path="by")
            return Certificate.maybe(await info.context.load(certificates.by_ids, key))
        return Certificate.maybe(await certificates.named(info.context, given(by.server_name)))

    @query(
        "All certificates, in the order they were made; those with query in the name of the "
        "server or, with altNames, in any name of theirs, and those with a wildcard for it.",
        role=Role.ADMIN,
        scope=Scope.READ,
    )
    async def certificates(
        self,
        info: Info,
        query: str | None = UNSET,
        alt_names: bool | None = False,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[Certificate]:
        where = Where(plain(query), bool(alt_names))
        requested_page = page_asked(OLDEST, first, after, last, before)
        return await connected(
            info,
            Certificate,
            await certificates.page(
                info.context, where, requested_page, columns(info, Certificate)
            ),
            lambda row: Cursor(OLDEST, row.created_at, row.id),
            lambda: certificates.count(info.context, where),
        )


@strawberry.type
class CertificateMutation:
    @mutation(
        "Makes the certificate of a server, or changes it. It is served at once, without a "
        "restart. The key must fit, and is shown to nobody again.",
        **WRITES,
    )
    async def certificate_set(self, info: Info, input: CertificateSetInput) -> CertificatePayload:
        key, notices = await certificates.put(info.context, _given(input))
        row = await info.context.load(certificates.by_ids, key)
        warnings = [
            types_errors.Warning(code=notice.code, message=notice.message, path=[notice.field])
            for notice in notices
        ]
        return CertificatePayload(certificate=Certificate.maybe(row), warnings=warnings)

    @mutation(
        "All or none. Connections that are open stay as they are.",
        alone=Alone("a revocation", lambda given: bool(given.revoke)),
        **WRITES,
    )
    async def certificate_delete(
        self, info: Info, input: CertificateDeleteInput
    ) -> CertificateDeletePayload:
        keys = keys_of(info, "Certificate", input.ids)
        revoked = await certificates.remove(info.context, keys, plain(input.revoke))
        return CertificateDeletePayload(
            deleted_ids=input.ids,
            revoked_ids=[strawberry.ID(global_ids.encode("Certificate", key)) for key in revoked],
        )

    @mutation(
        "Has certificates renewed by ACME now, whatever they failed by before; all or none. How "
        "it ends says acmeState.",
        **WRITES,
    )
    async def certificate_renew(self, info: Info, input: IdsInput) -> CertificateRenewPayload:
        keys = keys_of(info, "Certificate", input.ids)
        await certificates.renew(info.context, keys)
        rows: Sequence[Any] = await info.context.load_all(certificates.by_ids, keys)
        return CertificateRenewPayload(certificates=[Certificate.of(row) for row in rows if row])


def _given(input: CertificateSetInput) -> Given:
    """Convert the input to the request to store a certificate or to get it by ACME."""
    cert, key, ca = plain(input.cert), plain(input.private_key), plain(input.ca)
    certificate = None
    if cert is not None or key is not None or ca:
        certificate = Sent(cert or "", key, tuple(ca or ()))
    has_description, names = input.description is not UNSET, plain(input.acme_names)
    return Given(
        input.server_name,
        certificate,
        bool(input.acme),
        plain(input.description),
        has_description,
        None if names is None else tuple(names),
    )
