"""GraphQL types, queries and mutations of DKIM keys."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.types import errors as types_errors
from graph.types import global_ids
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, Options, leaf
from graph.types.fields import Auth, Info, field, query
from graph.types.mutations import mutation
from graph.types.object_views import Made, View, Viewed
from graph.types.references import given, keys_of, plain
from graph.types.row_mapping import Shape, columns, identified
from mail.authentication import private_keys
from mail.domains.dns_advice import DnsState, SigningKey, dkim_advice
from models.domains.dkim_keys import DkimAlgorithm, DkimKeyState
from models.store.keyset_pages import Cursor, ordering
from models.users.roles import Role, Scope
from resolvers.domains import dkim_key_mutations, dkim_keys, dkim_rotation
from resolvers.domains.dkim_key_mutations import WEAK, NewKey
from resolvers.domains.dkim_keys import Record
from resolvers.domains.dkim_rotation import NewKeys

OURS: dict[str, Any] = {"role": Role.DOMAIN_ADMIN}
WRITES: dict[str, Any] = {**OURS, "scope": Scope.MASTER}
LIST = "dkim-keys"
DNS_COST = 5
PLACES = 'Domains, or other names of one; "*" = all that have no key, of an ADMIN.'
SELECTOR = "Letters, digits, hyphens and dots."


@strawberry.type(description="TXT record.")
class DnsTxt(View):
    name: str = leaf("Whole name, as DNS has it; of a key for all domains, what stands before.")
    value: str = leaf("What it should be, in one piece: the zone file may cut it.")


def _record(*of: Any) -> Any:
    """Return the DNS record that publishes a key.

    `key_columns` are: domain, selector, algorithm, public key.
    """
    domain, selector, algorithm, public = of
    return dkim_advice(domain, SigningKey(selector, algorithm, public))


@strawberry.type(description="Signing key.", directives=[Auth(**OURS)])
class DkimKey(Shape):
    domain: str = leaf('Unicode form; "*" = all domains without a key of their own.')
    selector: str = leaf("What others find its record by.")
    description: str | None = leaf("Text for people.")
    algorithm: DkimAlgorithm = leaf("What it signs with.")
    key_size: int | None = leaf("Bits, of RSA.")
    fingerprint: str = leaf("SHA-1 of the public key.")
    fingerprint_sha256: str = leaf("SHA-256 of it.")
    public_key: str = leaf("One line, without prefix.")
    state: DkimKeyState = leaf("Where it stands.")
    dns_txt: DnsTxt = leaf("Record to publish.")
    created_at: datetime = leaf("Creation.")
    activated_at: datetime | None = leaf("Since when it signs, or has signed.")
    retired_at: datetime | None = leaf("Since when it signs no more.")

    batch = staticmethod(dkim_keys.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("DkimKey"),
        "fingerprint": Made(("public",), lambda public: private_keys.fingerprint(public, "sha1")),
        "fingerprint_sha256": Made(("public",), private_keys.fingerprint),
        "public_key": Made(("public",), lambda public: public),
        "dns_txt": Viewed(("domain", "selector", "algorithm", "public"), _record, DnsTxt),
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
        return await info.context.load(dkim_keys.states, Record.of(self.row))


@strawberry.input(one_of=True, description="Names one key.")
class DkimKeyRef:
    id: strawberry.Maybe[strawberry.ID] = leaf("Global id.")
    domain: strawberry.Maybe[str] = leaf("The key in use of a domain: RSA, if there is one.")


@strawberry.input(description="Input of dkimKeySet.")
class DkimKeySetInput(Options):
    domains: list[str] = leaf(PLACES)
    selector: str = leaf(SELECTOR, default=dkim_key_mutations.CHOSEN)
    description: str | None = leaf("Text for people.", default=UNSET)
    private_key: str | None = leaf(
        "PEM, or the 32 bytes of an Ed25519 key in base64; made when missing, one for each domain.",
        default=UNSET,
    )
    algorithm: DkimAlgorithm = leaf("Of a key that is made.", default=DkimAlgorithm.RSA)
    key_size: int = leaf("Of such a key of RSA: 1024, 2048, 3072, 4096.", default=2048)
    replace: bool = leaf("False: an existing key is a CONFLICT.", default=True)


@strawberry.input(description="Input of dkimKeyRotate.")
class DkimKeyRotateInput(Options):
    domains: list[str] = leaf(PLACES)
    selector: str | None = leaf(f"{SELECTOR} Absent: with the date in it.", default=UNSET)
    algorithm: DkimAlgorithm | None = leaf("Absent: those of the keys in use.", default=UNSET)
    key_size: int | None = leaf("Absent: as now, 2048 at least.", default=UNSET)


@strawberry.input(description="Input of dkimKeyCopy.")
class DkimKeyCopyInput(Options):
    from_: str = leaf("A domain with keys that sign.", name="from")
    to: list[str] = leaf(PLACES)


@strawberry.input(description="Input of dkimKeyDelete.")
class DkimKeyDeleteInput(Options):
    ids: list[strawberry.ID] | None = leaf("Global ids.", default=UNSET)
    domains: list[str] | None = leaf("All keys of these.", default=UNSET)


@strawberry.type(description="Answer of the mutations that make keys, or change them.")
class DkimKeysPayload(MutationPayload):
    keys: list[DkimKey] = leaf("The keys.", default_factory=list)


@strawberry.type
class DkimQuery:
    @query("One key, by id, or the one a domain uses; null when none.", scope=Scope.READ, **OURS)
    async def dkim_key(self, info: Info, by: DkimKeyRef) -> DkimKey | None:
        if by.id:
            key = global_ids.decode("DkimKey", by.id.value, path="by")
            return DkimKey.maybe(await info.context.load(dkim_keys.by_ids, key))
        return DkimKey.maybe(await info.context.load(dkim_keys.of_domains, given(by.domain) or ""))

    @query(
        "Those of the domains the viewer administers, by domain; query matches it in part.",
        scope=Scope.READ,
        **OURS,
    )
    async def dkim_keys(
        self,
        info: Info,
        query: str | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[DkimKey]:
        search_text = query or None
        requested_page = page_asked(ordering(LIST, search_text), first, after, last, before)
        return await connected(
            info,
            DkimKey,
            await dkim_keys.page(info.context, search_text, requested_page, columns(info, DkimKey)),
            lambda row: Cursor(requested_page.ordering, row.domain, row.id),
            lambda: dkim_keys.count(info.context, search_text),
        )


@strawberry.type
class DkimMutation:
    @mutation(
        "Signs with this key from now on. One with the same selector is replaced, one of the same "
        "algorithm retired; with RSA and Ed25519 both sign. dkimKeyRotate waits for DNS first.",
        **WRITES,
    )
    async def dkim_key_set(self, info: Info, input: DkimKeySetInput) -> DkimKeysPayload:
        new = NewKey(
            input.selector,
            plain(input.description),
            plain(input.private_key),
            input.algorithm,
            input.key_size,
            input.replace,
        )
        return await _now(info, await dkim_key_mutations.put(info.context, input.domains, new))

    @mutation(
        "Makes keys that follow those in use. Each waits until DNS has its record, which is looked "
        "for; then it signs, and the old one is kept, and its record needed, for dkim.overlap.",
        **WRITES,
    )
    async def dkim_key_rotate(self, info: Info, input: DkimKeyRotateInput) -> DkimKeysPayload:
        new = NewKeys(*map(plain, (input.selector, input.algorithm, input.key_size)))
        return await _now(info, await dkim_rotation.rotate(info.context, input.domains, new))

    @mutation(
        "Signs with these keys at once, whatever DNS says: those that wait, or were retired. What "
        "they follow is retired.",
        **WRITES,
    )
    async def dkim_key_activate(self, info: Info, input: IdsInput) -> DkimKeysPayload:
        keys = keys_of(info, "DkimKey", input.ids)
        return await _now(info, await dkim_rotation.activate(info.context, keys))

    @mutation(
        "Other domains sign with the same keys, under the same selectors.",
        role=Role.ADMIN,
        scope=Scope.MASTER,
    )
    async def dkim_key_copy(self, info: Info, input: DkimKeyCopyInput) -> DkimKeysPayload:
        return await _now(info, await dkim_key_mutations.copy(info.context, input.from_, input.to))

    @mutation("All or none; mail is not signed with them from then on.", **WRITES)
    async def dkim_key_delete(self, info: Info, input: DkimKeyDeleteInput) -> DeletePayload:
        keys = keys_of(info, "DkimKey", plain(input.ids) or [])
        deleted_keys = await dkim_key_mutations.remove(
            info.context, keys, plain(input.domains) or []
        )
        return DeletePayload(
            deleted_ids=[global_ids.encode("DkimKey", key) for key in deleted_keys]
        )


async def _now(info: Info, keys: list[int]) -> DkimKeysPayload:
    """Load keys and return the payload with them, with a warning if some are weak."""
    rows = [row for row in await info.context.load_all(dkim_keys.by_ids, keys) if row]
    weak_domains = [row.domain for row in rows if row.key_size is not None and row.key_size < WEAK]
    text = f"some servers believe no RSA key below {WEAK} bits: {', '.join(weak_domains)}"
    warnings = (
        [types_errors.Warning(code="WEAK_KEY", message=text, path=["keySize"])]
        if weak_domains
        else []
    )
    return DkimKeysPayload(keys=[DkimKey.of(row) for row in rows], warnings=warnings)
