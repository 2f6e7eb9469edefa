"""GraphQL types, queries and mutations of BCC rules."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.domains.types import Domain
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, Options, leaf
from graph.types.fields import Auth, Info, query
from graph.types.mutations import mutation
from graph.types.object_views import Made
from graph.types.references import given, keys_of
from graph.types.row_mapping import Shape, columns, identified, link
from graph.types.scalars import EmailAddress
from models.addresses.rewrites import BccDirection
from models.store.keyset_pages import Cursor
from models.users.roles import AdminPermission, Role, Scope
from resolvers.addresses import bcc_rules
from resolvers.addresses.bcc_rules import OLDEST, NewRule, Values
from resolvers.domains import loaders as domain_loaders

MATCH = "Address without label, or @domain; dots do not count, nor which name of a domain it is."
BCC_TO = "Where the copy goes; it need not be here."
MAPS: dict[str, Any] = {"role": Role.DOMAIN_ADMIN, "admin_permission": AdminPermission.BCC_MAPS}
WRITES: dict[str, Any] = {**MAPS, "scope": Scope.MASTER}


@strawberry.type(
    description="Mail from or to an address or a domain is copied; nobody else is told.",
    directives=[Auth(**MAPS)],
)
class BccRule(Shape):
    direction: BccDirection = leaf("Mail that is sent, or that comes.")
    match: str = leaf("Address in normal form, or @domain.")
    bcc_to: EmailAddress = leaf("Where the copy goes.")
    domain: Domain | None = link(
        "domain_id", domain_loaders.by_ids, Domain.maybe, description="Domain of match."
    )
    active: bool = leaf("In force.")
    created_at: datetime = leaf("Creation.")
    updated_at: datetime | None = leaf("Last change.")

    batch = staticmethod(bcc_rules.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("BccRule"),
        "match": Made(("local", "name"), lambda local, name: f"{local}@{name}"),
    }


@strawberry.input(description="Input of bccRuleCreate.")
class BccRuleCreateInput(Options):
    match: str = leaf(MATCH)
    bcc_to: EmailAddress = leaf(BCC_TO)
    direction: BccDirection = leaf("Mail that is sent, or that comes.")
    active: bool = leaf("In force.", default=True)


@strawberry.input(description="Input of bccRuleUpdate; absent = unchanged.")
class BccRuleUpdateInput(Options):
    ids: list[strawberry.ID] = leaf("Global ids.")
    match: strawberry.Maybe[str] = leaf(MATCH)
    bcc_to: strawberry.Maybe[EmailAddress] = leaf(BCC_TO)
    direction: strawberry.Maybe[BccDirection] = leaf("Mail that is sent, or that comes.")
    active: strawberry.Maybe[bool] = leaf("In force.")


@strawberry.type(description="Answer of bccRuleCreate and bccRuleUpdate.")
class BccRulePayload(MutationPayload):
    bcc_rule: BccRule | None = leaf("The rule, where it is one.", default=None)
    bcc_rules: list[BccRule] = leaf("All of them, in the order of ids.", default_factory=list)


@strawberry.type
class BccRuleQuery:
    @query(
        "Rules of the domains one administers, in the order they were made.",
        scope=Scope.READ,
        **MAPS,
    )
    async def bcc_rules(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[BccRule]:
        requested_page = page_asked(OLDEST, first, after, last, before)
        return await connected(
            info,
            BccRule,
            await bcc_rules.page(info.context, requested_page, columns(info, BccRule)),
            lambda row: Cursor(OLDEST, row.created_at, row.id),
            lambda: bcc_rules.count(info.context),
        )


@strawberry.type
class BccRuleMutation:
    @mutation(
        "Has mail copied from now on: what users send from match, or what comes for it. One rule "
        "for each match and direction.",
        **WRITES,
    )
    async def bcc_rule_create(self, info: Info, input: BccRuleCreateInput) -> BccRulePayload:
        new = NewRule(input.match, input.bcc_to, input.direction, input.active)
        return await _now(info, [await bcc_rules.create(info.context, new)])

    @mutation("Changes rules, all or none.", **WRITES)
    async def bcc_rule_update(self, info: Info, input: BccRuleUpdateInput) -> BccRulePayload:
        keys = keys_of(info, "BccRule", input.ids)
        values = Values(*map(given, (input.match, input.bcc_to, input.direction, input.active)))
        await bcc_rules.change(info.context, keys, values)
        return await _now(info, keys)

    @mutation("All or none. Copies that wait in the queue still go.", **WRITES)
    async def bcc_rule_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        await bcc_rules.remove(info.context, keys_of(info, "BccRule", input.ids))
        return DeletePayload(deleted_ids=input.ids)


async def _now(info: Info, keys: list[int]) -> BccRulePayload:
    """Load rules and return the payload with them, in the order of the ids."""
    rows = await info.context.load_all(bcc_rules.by_ids, keys)
    rules = [BccRule.of(row) for row in rows if row]
    return BccRulePayload(bcc_rule=rules[0] if len(rules) == 1 else None, bcc_rules=rules)
