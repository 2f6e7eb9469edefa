"""GraphQL types, queries and mutations of BCC rules."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.domains.types import Domain
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, query
from graph.types.mutations import mutation
from graph.types.object_references import ObjectRef, ids_from_refs
from graph.types.object_views import DerivedField
from graph.types.references import maybe_value
from graph.types.row_mapping import NodeView, global_id_field, link, selected_columns
from graph.types.scalars import EmailAddress
from models.addresses.rewrites import BccDirection
from models.store.keyset_pages import Cursor
from models.users.roles import AdminPermission, Role, Scope
from resolvers.addresses import bcc_rules
from resolvers.addresses.bcc_rules import CURSOR_KIND, BccRuleChanges, NewBccRule
from resolvers.domains import loaders as domain_loaders

MATCH_DESCRIPTION = (
    "Address without label, or @domain; dots do not count, nor which name of a domain it is."
)
BCC_TO_DESCRIPTION = "Where the copy goes; it need not be here."
READ_GUARD: dict[str, Any] = {
    "role": Role.DOMAIN_ADMIN,
    "admin_permission": AdminPermission.BCC_RULES,
}
WRITE_GUARD: dict[str, Any] = {**READ_GUARD, "scope": Scope.FULL}


@strawberry.type(
    description="Mail from or to an address or a domain is copied; nobody else is told.",
    directives=[Auth(**READ_GUARD)],
)
class BccRule(NodeView):
    direction: BccDirection = attribute_field("Mail that is sent, or that comes.")
    match: str = attribute_field("Address in normal form, or @domain.")
    bcc_to: EmailAddress = attribute_field("Where the copy goes.")
    domain: Domain | None = link(
        "domain_id",
        domain_loaders.load_visible_domains_by_id,
        Domain.from_row_or_none,
        description="Domain of match.",
    )
    active: bool = attribute_field("In force.")
    created_at: datetime = attribute_field("Creation.")
    updated_at: datetime | None = attribute_field("Last change.")

    load_batch = staticmethod(bcc_rules.load_visible_rules_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("BccRule"),
        "match": DerivedField(("local", "name"), lambda local, name: f"{local}@{name}"),
    }


@strawberry.input(description="Input of bccRuleCreate.")
class BccRuleCreateInput(Options):
    match: str = attribute_field(MATCH_DESCRIPTION)
    bcc_to: EmailAddress = attribute_field(BCC_TO_DESCRIPTION)
    direction: BccDirection = attribute_field("Mail that is sent, or that comes.")
    active: bool = attribute_field("In force.", default=True)


@strawberry.input(one_of=True, description="Names one BCC rule.")
class BccRuleRef(ObjectRef):
    pass


@strawberry.input(description="New values of BCC rules. An absent field leaves the value.")
class BccRulePatch:
    match: strawberry.Maybe[str] = attribute_field(MATCH_DESCRIPTION)
    bcc_to: strawberry.Maybe[EmailAddress] = attribute_field(BCC_TO_DESCRIPTION)
    direction: strawberry.Maybe[BccDirection] = attribute_field("Mail that is sent, or that comes.")
    active: strawberry.Maybe[bool] = attribute_field("In force.")


@strawberry.input(description="Input of bccRuleUpdate.")
class BccRuleUpdateInput(Options):
    bcc_rules: list[BccRuleRef] = attribute_field("The BCC rules to change.")
    set: BccRulePatch = attribute_field("New values.")


@strawberry.input(description="Input of bccRuleDelete.")
class BccRuleDeleteInput(Options):
    bcc_rules: list[BccRuleRef] = attribute_field("The BCC rules to delete.")


@strawberry.type(description="Payload of bccRuleCreate.")
class BccRulePayload(MutationPayload):
    bcc_rule: BccRule | None = attribute_field("The new BCC rule.", default=None)


@strawberry.type(description="Payload of bccRuleUpdate.")
class BccRulesPayload(MutationPayload):
    bcc_rules: list[BccRule] = attribute_field(
        "The changed BCC rules, in the order of the references.", default_factory=list
    )


@strawberry.type
class BccRuleQuery:
    @query(
        "Rules of the domains one administers, in the order they were made.",
        scope=Scope.READ,
        **READ_GUARD,
    )
    async def bcc_rules(
        self,
        info: Info,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[BccRule]:
        requested_page = page_request(CURSOR_KIND, first, after, last, before)
        return await connection_of_page(
            info,
            BccRule,
            await bcc_rules.read_rule_page(
                info.context, requested_page, selected_columns(info, BccRule)
            ),
            lambda row: Cursor(CURSOR_KIND, row.created_at, row.id),
            lambda: bcc_rules.count_rules(info.context),
        )


@strawberry.type
class BccRuleMutation:
    @mutation(
        "Creates a BCC rule: the server copies mail that users send from `match`, or that arrives "
        "for it. There is one rule for each match and direction.",
        **WRITE_GUARD,
    )
    async def bcc_rule_create(self, info: Info, input: BccRuleCreateInput) -> BccRulePayload:
        new = NewBccRule(input.match, input.bcc_to, input.direction, input.active)
        (rule,) = await _load_rules(info, [await bcc_rules.create_rule(info.context, new)])
        return BccRulePayload(bcc_rule=rule)

    @mutation("Changes BCC rules, all or none.", **WRITE_GUARD)
    async def bcc_rule_update(self, info: Info, input: BccRuleUpdateInput) -> BccRulesPayload:
        keys, patch = ids_from_refs(info, input.bcc_rules, "bccRules"), input.set
        values = BccRuleChanges(
            *map(maybe_value, (patch.match, patch.bcc_to, patch.direction, patch.active))
        )
        await bcc_rules.update_rules(info.context, keys, values)
        return BccRulesPayload(bcc_rules=await _load_rules(info, keys))

    @mutation(
        "Deletes BCC rules, all or none. Copies that are already in the queue are still sent.",
        **WRITE_GUARD,
    )
    async def bcc_rule_delete(self, info: Info, input: BccRuleDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.bcc_rules, "bccRules")
        await bcc_rules.delete_rules(info.context, keys)
        return DeletePayload.of_keys("BccRule", keys)


async def _load_rules(info: Info, rule_ids: list[int]) -> list[BccRule]:
    """Load rules in the order of the ids."""
    rows = await info.context.load_many(bcc_rules.load_visible_rules_by_id, rule_ids)
    return [BccRule.from_row(row) for row in rows if row]
