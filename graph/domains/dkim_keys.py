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
from graph.types.object_access import DOMAINS
from graph.types.object_references import ObjectRef, id_from_ref, require_few_references
from graph.types.object_views import DerivedField, NestedViewField, View
from graph.types.references import maybe_value, value_or_none
from graph.types.row_mapping import NodeView, global_id_field, selected_columns
from mail.authentication import private_keys
from mail.domains.dns_advice import DnsState, PublishedSigningKey, dkim_record_advice
from models.domains.dkim_keys import ALL_DOMAINS, DkimAlgorithm, DkimKeyState
from models.errors import InvalidInput, NotFound
from models.store.keyset_pages import ordering_name
from models.users.roles import Role, Scope
from models.validation_constraints import ValidationConstraint
from models.warning_codes import WarningCode
from resolvers.domains import dkim_key_mutations, dkim_keys, dkim_rotation
from resolvers.domains.dkim_domains import DEFAULT_SELECTOR
from resolvers.domains.dkim_key_mutations import MIN_SAFE_RSA_BITS, NewDkimKey
from resolvers.domains.dkim_keys import DkimKeyOrder, DkimRecordKey
from resolvers.domains.dkim_rotation import DkimRotationValues
from resolvers.domains.loaders import DomainIdOrName, reference_text

DOMAIN_ADMIN_GUARD: dict[str, Any] = {"role": Role.DOMAIN_ADMIN}
WRITE_GUARD: dict[str, Any] = {**DOMAIN_ADMIN_GUARD, "scope": Scope.FULL}
DNS_COST = 5
SELECTOR_DESCRIPTION = (
    "Selector of the new key: the characters a-z, digits, hyphens and underscores, with dots "
    "between parts of at most 63 characters. Capitals are stored in lower case."
)


@strawberry.type(description="DNS TXT record to publish for a DKIM key.")
class DnsTxt(View):
    name: str = attribute_field(
        "Full DNS name of the record, in ASCII. For a key of `*`, only the part before the domain."
    )
    value: str = attribute_field(
        "Expected content in one piece. A zone file splits it into strings of at most 255 bytes."
    )


def _dkim_dns_record(*key_columns: Any) -> Any:
    """Return the DNS record that publishes a key.

    `key_columns` are: domain, selector, algorithm, public key.
    """
    domain, selector, algorithm, public = key_columns
    return dkim_record_advice(domain, PublishedSigningKey(selector, algorithm, public))


@strawberry.type(
    description="DKIM key of a domain (RFC 6376). The private key is never returned.",
    directives=[Auth(**DOMAIN_ADMIN_GUARD)],
)
class DkimKey(NodeView):
    domain: str = attribute_field(
        "Name of the domain or alias domain of the key, in Unicode. `*`: a shared key, which only "
        "an ADMIN can see. It signs for each domain that has no active key and whose DNS has the "
        "record of the shared key, or does not answer."
    )
    selector: str = attribute_field(
        "Selector of the DKIM key: its record has the name `<selector>._domainkey.<domain>`."
    )
    description: str | None = attribute_field("Note about the key for administrators. Null: none.")
    algorithm: DkimAlgorithm = attribute_field("Signature algorithm of the key.")
    key_size: int | None = attribute_field("Size of the DKIM key in bits. Null for Ed25519.")
    fingerprint: str = attribute_field(
        "SHA-1 fingerprint of the public key in lower-case hex, with a colon after each byte but "
        "the last."
    )
    fingerprint_sha256: str = attribute_field(
        "SHA-256 fingerprint of the public key in lower-case hex, with a colon after each byte but "
        "the last."
    )
    public_key: str = attribute_field("Public key in base64, in one line, without PEM header.")
    state: DkimKeyState = attribute_field("State of the DKIM key: pending, active or retired.")
    dns_txt: DnsTxt = attribute_field("DNS record to publish for the DKIM key.")
    created_at: datetime = attribute_field(
        "Time when the DKIM key was created. A replacement by `dkimKeySet` or `dkimKeyCopy` under "
        "the same selector keeps it."
    )
    activated_at: datetime | None = attribute_field(
        "Time when the DKIM key was last activated, and began to sign. Null: it was never active."
    )
    retired_at: datetime | None = attribute_field(
        "Time when the DKIM key was retired. From then on it does not sign. It is deleted 14 days "
        "later by default (`dkim.retiredKeyRetention`), or later, as soon as its domain has an "
        "active key. Null: the key is not retired."
    )

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
        "Comparison of the published DNS record of the DKIM key with the expected one. The "
        "look-ups of a request take at most 4 seconds together. UNKNOWN if DNS does not answer, "
        "for keys of `*`, and in an @atomic mutation.",
        "domain",
        "selector",
        "algorithm",
        "public",
        cost=DNS_COST,
    )
    async def dns_state(self, info: Info) -> DnsState:
        return await info.context.load(
            dkim_keys.query_record_states_unless_writing, DkimRecordKey.from_row(self.row)
        )


@strawberry.input(
    one_of=True,
    description=("Reference to the domain or alias domain of a DKIM key, or to `*` (all domains)."),
)
class DkimDomainRef:
    id: strawberry.Maybe[strawberry.ID] = attribute_field("Global ID of the domain.")
    name: strawberry.Maybe[str] = attribute_field(
        "Name of the domain or alias domain, in Unicode or ASCII form."
    )
    all: strawberry.Maybe[bool] = attribute_field(
        "True selects the keys of `*`, which sign for domains without an active key of "
        "their own that have published the record. False is an error. Requires role "
        "ADMIN."
    )


@strawberry.input(one_of=True, description="Reference to one DKIM key.")
class DkimKeyRef(ObjectRef):
    domain: strawberry.Maybe[DkimDomainRef] = attribute_field(
        "Domain of the key. Selects its active key, or else its pending key, but never a retired "
        "one. Of an RSA and an Ed25519 key in the same state, it selects the RSA key."
    )


async def _load_key_ids(info: Info, refs: Sequence[DkimKeyRef]) -> list[int]:
    """Return the row IDs of the keys in the list `dkimKeys`, in their order.

    Raises InvalidInput for a malformed reference, NotFound if a domain has no visible key in use,
    and LimitReached if there are too many references.
    """
    require_few_references(info, refs, ["dkimKeys"])
    domains = {
        nth: _domain_selector_or_raise(ref.domain.value, "dkimKeys", str(nth), "domain")
        for nth, ref in enumerate(refs)
        if ref.domain
    }
    rows = await info.context.load_many(
        dkim_keys.load_visible_active_or_pending_keys, list(domains.values())
    )
    row_by_position = dict(zip(domains, rows, strict=True))
    return [
        _require_key(row_by_position[nth], domains[nth], nth)
        if nth in domains
        else id_from_ref(ref, "dkimKeys", str(nth))
        for nth, ref in enumerate(refs)
    ]


def _require_key(row: Any, domain: DomainIdOrName, position: int) -> int:
    if row is None:
        raise NotFound(reference_text(domain), path=["dkimKeys"], index=position)
    return int(row.id)


def _domain_selectors(refs: Sequence[DkimDomainRef] | None, list_name: str) -> list[DomainIdOrName]:
    return [
        _domain_selector_or_raise(ref, list_name, str(index))
        for index, ref in enumerate(refs or ())
    ]


def _domain_selector_or_raise(ref: DkimDomainRef, *path: str) -> DomainIdOrName:
    """Return the resolvers' selector of a domain; its name is ALL_DOMAINS for `all`.

    Raises InvalidInput if the ID is malformed or `all` is false.
    """
    if ref.id:
        domain_id = global_ids.decode("Domain", ref.id.value, path=[*path, "id"])
        return DomainIdOrName(id=domain_id)
    if ref.name:
        return DomainIdOrName(name=ref.name.value)
    if not maybe_value(ref.all):
        raise InvalidInput(
            "Must be true.", constraint=ValidationConstraint.ENUM, path=[*path, "all"]
        )
    return DomainIdOrName(name=ALL_DOMAINS)


@strawberry.input(description="Conditions on DKIM keys.")
class DkimKeyFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Returns only keys whose domain name, in Unicode form, contains this text (case and "
        "accents are ignored). At most 1,000 characters.",
        default=UNSET,
    )


@strawberry.input(description="Input of dkimKeySet.")
class DkimKeySetInput(Options):
    domains: list[DkimDomainRef] = attribute_field("Domains that sign with the key, 1 to 50.")
    selector: str = attribute_field(SELECTOR_DESCRIPTION, default=DEFAULT_SELECTOR)
    description: str | None = attribute_field(
        "Note about the key for administrators, at most 1,000 characters. Default: none.",
        default=UNSET,
    )
    private_key: str | None = attribute_field(
        "Private key that all domains get: RSA with 1,024 to 4,096 bits or Ed25519 in unencrypted "
        "PEM, or the 32 bytes of an Ed25519 key in base64. Default: a new key is generated for "
        "each domain.",
        default=UNSET,
    )
    algorithm: DkimAlgorithm = attribute_field(
        "Algorithm of a generated key. It is ignored with `privateKey`.", default=DkimAlgorithm.RSA
    )
    key_size: int = attribute_field(
        "Size of a generated RSA key in bits: 1024, 2048, 3072 or 4096. The size is ignored with "
        "`privateKey` and for ED25519. Default: 2048.",
        default=2048,
    )
    replace: bool = attribute_field(
        "False: CONFLICT, without a change, if a domain has a key with this selector, or a key of "
        "the same algorithm that is not retired. True replaces the key with this selector, "
        "whatever its algorithm, and retires the other keys of the same algorithm. Keys of the "
        "other algorithm with another selector are never changed. Default: true.",
        default=True,
    )


@strawberry.input(description="Input of dkimKeyRotate.")
class DkimKeyRotateInput(Options):
    domains: list[DkimDomainRef] = attribute_field(
        "Domains whose active keys get successors, 1 to 50. More are a VALIDATION error."
    )
    selector: str | None = attribute_field(
        f"{SELECTOR_DESCRIPTION} Default: the old selector with the date, such as "
        "`dkim-20300131`. A selector requires `algorithm` if a domain has active keys "
        "of both algorithms.",
        default=UNSET,
    )
    algorithm: DkimAlgorithm | None = attribute_field(
        "Algorithm of the new keys. If a domain has an active key of this algorithm, only that key "
        "gets a successor. If all its active keys have another algorithm, they stay, and a pending "
        "key of this algorithm is added. Default: each active key gets a successor of its own "
        "algorithm.",
        default=UNSET,
    )
    key_size: int | None = attribute_field(
        "Size of a new RSA key in bits: 1024, 2048, 3072 or 4096. Default: the size of the old "
        "RSA key, but at least 2048.",
        default=UNSET,
    )


@strawberry.input(description="Input of dkimKeyCopy.")
class DkimKeyCopyInput(Options):
    from_domain: DkimDomainRef = attribute_field(
        "Domain whose active keys are copied, with their selectors and descriptions."
    )
    to_domains: list[DkimDomainRef] = attribute_field("Domains that get the keys, 1 to 50.")


@strawberry.input(description="Input of dkimKeyDelete.")
class DkimKeyDeleteInput(Options):
    dkim_keys: list[DkimKeyRef] | None = attribute_field(
        "Keys to delete, in any state, 1 to 1,000 by default. At least one key or domain is "
        "required.",
        default=UNSET,
    )
    domains: list[DkimDomainRef] | None = attribute_field(
        "Domains whose keys are all deleted, also retired ones: 1 to 50. More are the error "
        "VALIDATION. NOT_FOUND if one of them has no key.",
        default=UNSET,
    )


@strawberry.input(description="Input of dkimKeyActivate.")
class DkimKeyActivateInput(Options):
    dkim_keys: list[DkimKeyRef] = attribute_field(
        "Keys that sign from now on, 1 to 1,000 by default."
    )


@strawberry.type(description="Payload of mutations that create or change DKIM keys.")
class DkimKeysPayload(MutationPayload):
    dkim_keys: list[DkimKey] = attribute_field(
        "Keys that the mutation created or replaced; of `dkimKeyActivate` the given keys. Keys "
        "that it retired are not listed.",
        default_factory=list,
    )


@strawberry.type
class DkimQuery:
    @query(
        "Returns a DKIM key by ID, in any state, or the key of a domain or alias domain. The key "
        "of a domain is its active key, or else its pending key; an RSA key comes before an "
        "Ed25519 key. A domain without such a key does not get the key of `*`. An ADMIN gets the "
        "key of `*` with `all: true` or by its ID. Null if there is no such key, or the caller "
        "can't see it.",
        scope=Scope.READ,
        **DOMAIN_ADMIN_GUARD,
        access=DOMAINS,
    )
    async def dkim_key(self, info: Info, by: DkimKeyRef) -> DkimKey | None:
        if by.id:
            key = global_ids.decode("DkimKey", by.id.value, path="by")
            return DkimKey.from_row_or_none(
                await info.context.load(dkim_keys.load_visible_keys_by_id, key)
            )
        return DkimKey.from_row_or_none(
            await info.context.load(
                dkim_keys.load_visible_active_or_pending_keys,
                _domain_selector_or_raise(maybe_value(by.domain), "by", "domain"),
            )
        )

    @query(
        "Returns the DKIM keys, in all states, of the domains that the caller administers and of "
        "their alias domains. An ADMIN also gets the keys of `*`, which sign for domains without "
        "an active key of their own.",
        scope=Scope.READ,
        **DOMAIN_ADMIN_GUARD,
        access=DOMAINS,
    )
    async def dkim_keys(
        self,
        info: Info,
        filter: DkimKeyFilter | None = UNSET,
        order_by: DkimKeyOrder = DkimKeyOrder.DOMAIN_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[DkimKey]:
        search_text = (filter.query or None) if filter else None
        list_ordering = ordering_name(f"dkim-keys-{order_by}", search_text)
        list_order = dkim_keys.LIST_ORDERS[order_by]
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            DkimKey,
            await dkim_keys.read_visible_key_page(
                info.context, search_text, requested_page, selected_columns(info, DkimKey), order_by
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: dkim_keys.count_visible_keys(info.context, search_text),
        )


@strawberry.type
class DkimMutation:
    @mutation(
        "Makes all of the given domains, or none, sign with a given or generated DKIM key at "
        "once, whether DNS has its record or not. A key of `*` signs for each domain that has no "
        "active key of its own and has published the record. A key with the same selector is "
        "replaced and keeps its ID. Other active and pending keys of the same algorithm are "
        "retired. Use `dkimKeyRotate` to wait for DNS. LIMIT_REACHED if a domain would have more "
        "than 20 keys. CONFLICT if `replace` is false and a key would be replaced or retired. In "
        "an `@atomic` request, the generation of several RSA keys is FORBIDDEN_OPERATION.",
        **WRITE_GUARD,
        access=DOMAINS,
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
        domains = _domain_selectors(input.domains, "domains")
        return await _load_keys_payload_with_weak_key_warning(
            info, await dkim_key_mutations.set_active_keys(info.context, domains, new)
        )

    @mutation(
        "Creates a pending successor for each active DKIM key of the domains, for all domains or "
        "none. The server checks DNS at once, then after pauses that grow from 1 minute to 1 "
        "hour. When DNS has the record of a successor, the successor signs, and the old key is "
        "retired. DNS has no record of the domain `*`, which requires the role ADMIN, so its "
        "successors sign only after `dkimKeyActivate`. CONFLICT if a domain already has a pending "
        "key of the same algorithm or a key with the same selector. CONFLICT also if its keys "
        "change at the same time. NOT_FOUND if a domain has no active key. LIMIT_REACHED if a "
        "domain would have more than 20 keys. In an `@atomic` request, the generation of several "
        "RSA keys is FORBIDDEN_OPERATION.",
        **WRITE_GUARD,
        access=DOMAINS,
    )
    async def dkim_key_rotate(self, info: Info, input: DkimKeyRotateInput) -> DkimKeysPayload:
        new = DkimRotationValues(
            *map(value_or_none, (input.selector, input.algorithm, input.key_size))
        )
        domains = _domain_selectors(input.domains, "domains")
        return await _load_keys_payload_with_weak_key_warning(
            info, await dkim_rotation.create_pending_successor_keys(info.context, domains, new)
        )

    @mutation(
        "Makes DKIM keys sign at once, all or none. A key of a domain signs even if DNS has no "
        "record for it. A key of `*` signs for each domain that has no active key of its own and "
        "has published the record. The other active and pending keys of the same domain and "
        "algorithm are retired. CONFLICT if two different keys have the same domain and "
        "algorithm. A retired key can be activated again; an active one is unchanged. "
        "LIMIT_REACHED for more than 1,000 references (by default).",
        **WRITE_GUARD,
        access=DOMAINS,
    )
    async def dkim_key_activate(self, info: Info, input: DkimKeyActivateInput) -> DkimKeysPayload:
        keys = await _load_key_ids(info, input.dkim_keys)
        return await _load_keys_payload_with_weak_key_warning(
            info, await dkim_rotation.activate_dkim_keys(info.context, keys)
        )

    @mutation(
        "Copies the active DKIM keys of a source domain to target domains, under the same "
        "selectors, for all target domains or none. NOT_FOUND if the source domain has no active "
        "key. VALIDATION if a target is the source. A copied key signs at once, even if DNS has "
        "no record for it. A key that is copied to `*` signs only for domains that have published "
        "its record. A key of a target domain with the same selector is replaced. Its other "
        "active and pending keys of the same algorithm are retired. LIMIT_REACHED if a target "
        "domain would have more than 20 keys.",
        role=Role.ADMIN,
        scope=Scope.FULL,
    )
    async def dkim_key_copy(self, info: Info, input: DkimKeyCopyInput) -> DkimKeysPayload:
        source = _domain_selector_or_raise(input.from_domain, "fromDomain")
        targets = _domain_selectors(input.to_domains, "toDomains")
        return await _load_keys_payload_with_weak_key_warning(
            info, await dkim_key_mutations.copy_active_keys(info.context, source, targets)
        )

    @mutation(
        "Deletes DKIM keys at once, by reference or all keys of a domain, all or none. New "
        "attempts, also of messages in the queue, are no longer signed with them. The keys of `*` "
        "then sign for a domain without an active key, if the domain has published their records. "
        "LIMIT_REACHED for more than 1,000 references (by default).",
        **WRITE_GUARD,
        access=DOMAINS,
    )
    async def dkim_key_delete(self, info: Info, input: DkimKeyDeleteInput) -> DeletePayload:
        keys = await _load_key_ids(info, value_or_none(input.dkim_keys) or [])
        domains = _domain_selectors(value_or_none(input.domains), "domains")
        deleted_keys = await dkim_key_mutations.delete_keys_by_id_or_domain(
            info.context, keys, domains
        )
        return DeletePayload.of_keys("DkimKey", deleted_keys)


async def _load_keys_payload_with_weak_key_warning(
    info: Info, key_ids: list[int]
) -> DkimKeysPayload:
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
        f"Some servers do not accept RSA keys below {MIN_SAFE_RSA_BITS} bits: "
        f"{', '.join(weak_domains)}."
    )
    warnings = (
        [types_errors.Warning(code=WarningCode.WEAK_KEY, message=text, path=["keySize"])]
        if weak_domains
        else []
    )
    return DkimKeysPayload(dkim_keys=[DkimKey.from_row(row) for row in rows], warnings=warnings)
