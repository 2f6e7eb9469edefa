"""GraphQL types, queries and mutations of DKIM keys."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.types import errors as types_errors
from graph.types import global_ids
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, field, query
from graph.types.input_conditions import ConditionsInput
from graph.types.mutations import mutation
from graph.types.object_references import ObjectRef, load_ids_from_refs
from graph.types.object_views import DerivedField, NestedViewField, View
from graph.types.references import maybe_value, value_or_none
from graph.types.row_mapping import NodeView, global_id_field, selected_columns
from mail.authentication import private_keys
from mail.domains.dns_advice import DnsState, PublishedSigningKey, dkim_record_advice
from models.domains.dkim_keys import DkimAlgorithm, DkimKeyState
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import Role, Scope
from models.warning_codes import WarningCode
from resolvers.context import Context
from resolvers.domains import dkim_key_mutations, dkim_keys, dkim_rotation
from resolvers.domains.dkim_domains import DEFAULT_SELECTOR
from resolvers.domains.dkim_key_mutations import MIN_SAFE_RSA_BITS, NewDkimKey
from resolvers.domains.dkim_keys import DkimRecordKey
from resolvers.domains.dkim_rotation import DkimRotationValues

DOMAIN_ADMIN_GUARD: dict[str, Any] = {"role": Role.DOMAIN_ADMIN}
WRITE_GUARD: dict[str, Any] = {**DOMAIN_ADMIN_GUARD, "scope": Scope.FULL}
LIST_ORDERING = "dkim-keys"
DNS_COST = 5
DOMAINS_DESCRIPTION = 'Domains, or other names of one; "*" = all that have no key, of an ADMIN.'
SELECTOR_DESCRIPTION = "Letters, digits, hyphens and dots."


@strawberry.type(description="TXT record.")
class DnsTxt(View):
    name: str = attribute_field(
        "Whole name, as DNS has it; of a key for all domains, what stands before."
    )
    value: str = attribute_field("What it should be, in one piece: the zone file may cut it.")


def _dkim_dns_record(*key_columns: Any) -> Any:
    """Return the DNS record that publishes a key.

    `key_columns` are: domain, selector, algorithm, public key.
    """
    domain, selector, algorithm, public = key_columns
    return dkim_record_advice(domain, PublishedSigningKey(selector, algorithm, public))


@strawberry.type(description="Signing key.", directives=[Auth(**DOMAIN_ADMIN_GUARD)])
class DkimKey(NodeView):
    domain: str = attribute_field('Unicode form; "*" = all domains without a key of their own.')
    selector: str = attribute_field("What others find its record by.")
    description: str | None = attribute_field("Text for people.")
    algorithm: DkimAlgorithm = attribute_field("What it signs with.")
    key_size: int | None = attribute_field("Bits, of RSA.")
    fingerprint: str = attribute_field("SHA-1 of the public key.")
    fingerprint_sha256: str = attribute_field("SHA-256 of it.")
    public_key: str = attribute_field("One line, without prefix.")
    state: DkimKeyState = attribute_field("Where it stands.")
    dns_txt: DnsTxt = attribute_field("Record to publish.")
    created_at: datetime = attribute_field("Creation.")
    activated_at: datetime | None = attribute_field("Since when it signs, or has signed.")
    retired_at: datetime | None = attribute_field("Since when it signs no more.")

    load_batch = staticmethod(dkim_keys.load_visible_keys_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("DkimKey"),
        "fingerprint": DerivedField(
            ("public",), lambda public: private_keys.fingerprint(public, "sha1")
        ),
        "fingerprint_sha256": DerivedField(("public",), private_keys.fingerprint),
        "public_key": DerivedField(("public",), lambda public: public),
        "dns_txt": NestedViewField(
            ("domain", "selector", "algorithm", "public"), _dkim_dns_record, DnsTxt
        ),
    }

    @field(
        "As looked up, within four seconds for all that are asked for at once.",
        "domain",
        "selector",
        "algorithm",
        "public",
        cost=DNS_COST,
    )
    async def dns_state(self, info: Info) -> DnsState:
        return await info.context.load(
            dkim_keys.query_record_states, DkimRecordKey.from_row(self.row)
        )


@strawberry.input(one_of=True, description="Names one DKIM key.")
class DkimKeyRef(ObjectRef):
    domain: strawberry.Maybe[str] = attribute_field(
        "Name of a domain: names its key in use, the RSA key if it signs with two keys."
    )


async def _load_key_ids_by_domain(ctx: Context, domain_names: Sequence[str]) -> dict[str, int]:
    """Return the IDs of the keys in use of domains, by the names as they are given."""
    rows = await ctx.load_many(dkim_keys.load_current_keys_by_domain, list(domain_names))
    return {name: row.id for name, row in zip(domain_names, rows, strict=True) if row}


async def _load_key_ids(info: Info, refs: Sequence[DkimKeyRef]) -> list[int]:
    return await load_ids_from_refs(
        info, refs, "dkimKeys", name_field="domain", load_ids=_load_key_ids_by_domain
    )


@strawberry.input(description="Selects DKIM keys.")
class DkimKeyFilter(ConditionsInput):
    query: str | None = attribute_field("Part of the domain name.", default=UNSET)


@strawberry.input(description="Input of dkimKeySet.")
class DkimKeySetInput(Options):
    domains: list[str] = attribute_field(DOMAINS_DESCRIPTION)
    selector: str = attribute_field(SELECTOR_DESCRIPTION, default=DEFAULT_SELECTOR)
    description: str | None = attribute_field("Text for people.", default=UNSET)
    private_key: str | None = attribute_field(
        "PEM, or the 32 bytes of an Ed25519 key in base64; made when missing, one for each domain.",
        default=UNSET,
    )
    algorithm: DkimAlgorithm = attribute_field("Of a key that is made.", default=DkimAlgorithm.RSA)
    key_size: int = attribute_field("Of such a key of RSA: 1024, 2048, 3072, 4096.", default=2048)
    replace: bool = attribute_field("False: an existing key is a CONFLICT.", default=True)


@strawberry.input(description="Input of dkimKeyRotate.")
class DkimKeyRotateInput(Options):
    domains: list[str] = attribute_field(DOMAINS_DESCRIPTION)
    selector: str | None = attribute_field(
        f"{SELECTOR_DESCRIPTION} Absent: with the date in it.", default=UNSET
    )
    algorithm: DkimAlgorithm | None = attribute_field(
        "Absent: those of the keys in use.", default=UNSET
    )
    key_size: int | None = attribute_field("Absent: as now, 2048 at least.", default=UNSET)


@strawberry.input(description="Input of dkimKeyCopy.")
class DkimKeyCopyInput(Options):
    from_domain: str = attribute_field("Name of the domain whose active keys are copied.")
    to_domains: list[str] = attribute_field(DOMAINS_DESCRIPTION)


@strawberry.input(description="Input of dkimKeyDelete.")
class DkimKeyDeleteInput(Options):
    dkim_keys: list[DkimKeyRef] | None = attribute_field("Keys to delete.", default=UNSET)
    domains: list[str] | None = attribute_field(
        "Names of domains whose keys are all deleted.", default=UNSET
    )


@strawberry.input(description="Input of dkimKeyActivate.")
class DkimKeyActivateInput(Options):
    dkim_keys: list[DkimKeyRef] = attribute_field("Keys that sign from now on.")


@strawberry.type(description="Answer of the mutations that make keys, or change them.")
class DkimKeysPayload(MutationPayload):
    dkim_keys: list[DkimKey] = attribute_field("The DKIM keys.", default_factory=list)


@strawberry.type
class DkimQuery:
    @query(
        "One key, by id, or the one a domain uses; null when none.",
        scope=Scope.READ,
        **DOMAIN_ADMIN_GUARD,
    )
    async def dkim_key(self, info: Info, by: DkimKeyRef) -> DkimKey | None:
        if by.id:
            key = global_ids.decode("DkimKey", by.id.value, path="by")
            return DkimKey.from_row_or_none(
                await info.context.load(dkim_keys.load_visible_keys_by_id, key)
            )
        return DkimKey.from_row_or_none(
            await info.context.load(
                dkim_keys.load_current_keys_by_domain, maybe_value(by.domain) or ""
            )
        )

    @query(
        "DKIM keys of the domains that the viewer administers, ordered by domain.",
        scope=Scope.READ,
        **DOMAIN_ADMIN_GUARD,
    )
    async def dkim_keys(
        self,
        info: Info,
        filter: DkimKeyFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[DkimKey]:
        search_text = (filter.query or None) if filter else None
        requested_page = page_request(
            ordering_name(LIST_ORDERING, search_text), first, after, last, before
        )
        return await connection_of_page(
            info,
            DkimKey,
            await dkim_keys.read_key_page(
                info.context, search_text, requested_page, selected_columns(info, DkimKey)
            ),
            lambda row: Cursor(requested_page.ordering, row.domain, row.id),
            lambda: dkim_keys.count_keys(info.context, search_text),
        )


@strawberry.type
class DkimMutation:
    @mutation(
        "Signs with this key from now on. One with the same selector is replaced, one of the same "
        "algorithm retired; with RSA and Ed25519 both sign. dkimKeyRotate waits for DNS first.",
        **WRITE_GUARD,
    )
    async def dkim_key_set(self, info: Info, input: DkimKeySetInput) -> DkimKeysPayload:
        new = NewDkimKey(
            input.selector,
            value_or_none(input.description),
            value_or_none(input.private_key),
            input.algorithm,
            input.key_size,
            input.replace,
        )
        return await _load_payload_warning_of_weak_keys(
            info, await dkim_key_mutations.set_active_keys(info.context, input.domains, new)
        )

    @mutation(
        "Makes keys that follow those in use. Each waits until DNS has its record, which is looked "
        "for; then it signs, and the old one is kept, and its record needed, for "
        "dkim.retiredKeyRetention.",
        **WRITE_GUARD,
    )
    async def dkim_key_rotate(self, info: Info, input: DkimKeyRotateInput) -> DkimKeysPayload:
        new = DkimRotationValues(
            *map(value_or_none, (input.selector, input.algorithm, input.key_size))
        )
        return await _load_payload_warning_of_weak_keys(
            info,
            await dkim_rotation.create_pending_successor_keys(info.context, input.domains, new),
        )

    @mutation(
        "Signs with these keys at once, whatever DNS says: those that wait, or were retired. What "
        "they follow is retired.",
        **WRITE_GUARD,
    )
    async def dkim_key_activate(self, info: Info, input: DkimKeyActivateInput) -> DkimKeysPayload:
        keys = await _load_key_ids(info, input.dkim_keys)
        return await _load_payload_warning_of_weak_keys(
            info, await dkim_rotation.activate_keys(info.context, keys)
        )

    @mutation(
        "Other domains sign with the same keys, under the same selectors.",
        role=Role.ADMIN,
        scope=Scope.FULL,
    )
    async def dkim_key_copy(self, info: Info, input: DkimKeyCopyInput) -> DkimKeysPayload:
        return await _load_payload_warning_of_weak_keys(
            info,
            await dkim_key_mutations.copy_active_keys(
                info.context, input.from_domain, input.to_domains
            ),
        )

    @mutation("All or none; mail is not signed with them from then on.", **WRITE_GUARD)
    async def dkim_key_delete(self, info: Info, input: DkimKeyDeleteInput) -> DeletePayload:
        keys = await _load_key_ids(info, value_or_none(input.dkim_keys) or [])
        deleted_keys = await dkim_key_mutations.delete_keys_by_id_or_domain(
            info.context, keys, value_or_none(input.domains) or []
        )
        return DeletePayload(
            deleted_ids=[global_ids.encode("DkimKey", key) for key in deleted_keys]
        )


async def _load_payload_warning_of_weak_keys(info: Info, key_ids: list[int]) -> DkimKeysPayload:
    """Load keys and return the payload with them, with a warning if some are weak."""
    rows = [
        row
        for row in await info.context.load_many(dkim_keys.load_visible_keys_by_id, key_ids)
        if row
    ]
    weak_domains = [
        row.domain for row in rows if row.key_size is not None and row.key_size < MIN_SAFE_RSA_BITS
    ]
    text = (
        f"some servers believe no RSA key below {MIN_SAFE_RSA_BITS} bits: {', '.join(weak_domains)}"
    )
    warnings = (
        [types_errors.Warning(code=WarningCode.WEAK_KEY, message=text, path=["keySize"])]
        if weak_domains
        else []
    )
    return DkimKeysPayload(dkim_keys=[DkimKey.from_row(row) for row in rows], warnings=warnings)
