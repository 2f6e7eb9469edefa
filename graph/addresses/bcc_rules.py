"""GraphQL types, queries and mutations of BCC rules."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any, ClassVar

import strawberry
from strawberry import UNSET

from graph.domains.types import Domain
from graph.types.access_grants import GIVES_ACCESS
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Auth, Info, query
from graph.types.input_conditions import ConditionsInput
from graph.types.mutations import mutation
from graph.types.object_access import DOMAINS, MANAGED_OR_DOMAINS
from graph.types.object_references import ObjectRef, ids_from_refs
from graph.types.object_views import DerivedField
from graph.types.references import DomainRef, domain_selector_from_ref, maybe_value
from graph.types.row_mapping import NodeView, global_id_field, link, selected_columns
from graph.types.scalars import EmailAddress
from models.addresses.rewrites import BccDirection
from models.store.keyset_pages import ordering_name
from models.users.roles import AdminPermission, Role, Scope
from resolvers.addresses import bcc_rules
from resolvers.addresses.bcc_rules import (
    BccRuleChanges,
    BccRuleConditions,
    BccRuleOrder,
    NewBccRule,
)
from resolvers.domains import loaders as domain_loaders

MATCH_DESCRIPTION = (
    "Address without `*` and without subaddress (`+label`), or `@domain` for all addresses of a "
    "domain. Case and dots are ignored. An alias domain means its domain."
)
BCC_TO_DESCRIPTION = (
    "Address that receives the copies. It can be on another server, and must differ from `match`."
)
READ_GUARD: dict[str, Any] = {
    "role": Role.DOMAIN_ADMIN,
    "admin_permission": AdminPermission.BCC_RULES,
}
WRITE_GUARD: dict[str, Any] = {**READ_GUARD, "scope": Scope.FULL}


@strawberry.type(
    description="Rule that copies mail from or for an address or domain to another address, "
    "unseen by sender and recipients.",
    directives=[Auth(**READ_GUARD)],
)
class BccRule(NodeView):
    direction: BccDirection = attribute_field(
        "Side of the message that is compared: the sender or the recipient."
    )
    match: str = attribute_field(
        "Matched address in normalized form (lower case, without dots and subaddress), or "
        "`@domain` for all addresses of a domain."
    )
    bcc_to: EmailAddress = attribute_field("Address that receives the copies.")
    domain: Domain | None = link(
        "domain_id",
        domain_loaders.load_visible_domains_by_id,
        Domain.from_row_or_none,
        description="Domain of the matched address.",
    )
    active: bool = attribute_field("False: the rule copies nothing.")
    created_at: datetime = attribute_field("Time when the rule was created.")
    updated_at: datetime | None = attribute_field("Time of the last change of the rule.")

    load_batch = staticmethod(bcc_rules.load_visible_rules_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("BccRule"),
        "match": DerivedField(("local", "name"), lambda local, name: f"{local}@{name}"),
    }


@strawberry.input(description="Conditions on BCC rules. All must hold.")
class BccRuleFilter(ConditionsInput):
    query: str | None = attribute_field(
        "Returns only rules with this text in `match`, which has no dots in the local part, or in "
        "`bccTo`. Case and accents are ignored. At most 1,000 characters.",
        default=UNSET,
    )
    domain: DomainRef | None = attribute_field(
        "Returns only rules that match addresses of this domain. There are none if the caller "
        "does not administer it.",
        default=UNSET,
    )

    def to_conditions(self) -> BccRuleConditions:
        """Convert the filter to conditions of the resolvers."""
        return BccRuleConditions(
            query=self.query or None,
            domain=domain_selector_from_ref(self.domain, path="filter") if self.domain else None,
        )


@strawberry.input(description="Input of bccRuleCreate.")
class BccRuleCreateInput(Options):
    match: str = attribute_field(MATCH_DESCRIPTION)
    bcc_to: EmailAddress = attribute_field(BCC_TO_DESCRIPTION, metadata=GIVES_ACCESS)
    direction: BccDirection = attribute_field(
        "Side of the message that is compared: the sender or the recipient."
    )
    active: bool = attribute_field("False: the rule copies nothing.", default=True)


@strawberry.input(one_of=True, description="Reference to one BCC rule.")
class BccRuleRef(ObjectRef):
    pass


@strawberry.input(
    description=(
        "New values of BCC rules. An absent field leaves the value; null is an error. At least one "
        "field is required."
    )
)
class BccRulePatch:
    match: strawberry.Maybe[str] = attribute_field(MATCH_DESCRIPTION)
    bcc_to: strawberry.Maybe[EmailAddress] = attribute_field(
        BCC_TO_DESCRIPTION, metadata=GIVES_ACCESS
    )
    direction: strawberry.Maybe[BccDirection] = attribute_field(
        "Side of the message that is compared: the sender or the recipient."
    )
    active: strawberry.Maybe[bool] = attribute_field("False: the rule copies nothing.")


@strawberry.input(description="Input of bccRuleUpdate.")
class BccRuleUpdateInput(Options):
    bcc_rules: list[BccRuleRef] = attribute_field("BCC rules to change, 1 to 1,000 by default.")
    set: BccRulePatch = attribute_field(
        "New values, the same for all rules. At least one value is required."
    )


@strawberry.input(description="Input of bccRuleDelete.")
class BccRuleDeleteInput(Options):
    bcc_rules: list[BccRuleRef] = attribute_field("BCC rules to delete, 1 to 1,000 by default.")


@strawberry.type(description="Payload of bccRuleCreate.")
class BccRulePayload(MutationPayload):
    bcc_rule: BccRule | None = attribute_field(
        "Created BCC rule. Null if the mutation failed.", default=None
    )


@strawberry.type(description="Payload of bccRuleUpdate.")
class BccRulesPayload(MutationPayload):
    bcc_rules: list[BccRule] = attribute_field(
        "Changed BCC rules, in the order of the references. Empty if the mutation failed.",
        default_factory=list,
    )


@strawberry.type
class BccRuleQuery:
    @query(
        "Returns the BCC rules of the domains that the caller administers, active and inactive "
        "ones.",
        scope=Scope.READ,
        **READ_GUARD,
        access=DOMAINS,
    )
    async def bcc_rules(
        self,
        info: Info,
        filter: BccRuleFilter | None = UNSET,
        order_by: BccRuleOrder = BccRuleOrder.CREATED_AT_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[BccRule]:
        conditions = filter.to_conditions() if filter else BccRuleConditions()
        list_ordering = ordering_name(
            f"bcc-rules-{order_by}", None if conditions == BccRuleConditions() else conditions
        )
        list_order = bcc_rules.LIST_ORDERS[order_by]
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            BccRule,
            await bcc_rules.read_visible_bcc_rule_page(
                info.context, conditions, requested_page, selected_columns(info, BccRule), order_by
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: bcc_rules.count_visible_bcc_rules(info.context, conditions),
        )


@strawberry.type
class BccRuleMutation:
    @mutation(
        "Creates a BCC rule. The server then sends a copy of mail from or for an address or "
        "domain to another address. Sender and recipients don't see it. Mail for an address is "
        "copied if an account stores it. The caller is the author of the rule. A rule copies mail "
        "of another account only if the role of its author can administer that account. FORBIDDEN "
        "if `match` is an address of an account that the caller can't administer. The rule is in "
        "the security log of the account that `match` belongs to. If somebody else makes the "
        "rule, the user of that account gets a message. CONFLICT if a rule with the same match "
        "and direction exists. NOT_FOUND if the caller does not administer the domain. VALIDATION "
        "if a rule copies an address to itself. LIMIT_REACHED if the domain has 1,000 rules.",
        **WRITE_GUARD,
        access=MANAGED_OR_DOMAINS,
    )
    async def bcc_rule_create(self, info: Info, input: BccRuleCreateInput) -> BccRulePayload:
        new = NewBccRule(input.match, input.bcc_to, input.direction, input.active)
        (rule,) = await _load_rules(info, [await bcc_rules.create_bcc_rule(info.context, new)])
        return BccRulePayload(bcc_rule=rule)

    @mutation(
        "Changes the given BCC rules, or none of them if one can't be changed. The caller becomes "
        "the author of each rule. A rule copies the mail of an administrator only if its author "
        "is that administrator, or can administer that administrator. FORBIDDEN if the new "
        "address of a rule belongs to an account that the caller can't administer. The change is "
        "in the security log of that account; if somebody else makes it, the user gets a message. "
        "CONFLICT if another rule has the same `match` and `direction`. VALIDATION if a rule "
        "copies an address to itself. LIMIT_REACHED for more than 1,000 given rules (by default), "
        "or if a domain would have more than 1,000 rules.",
        **WRITE_GUARD,
        access=MANAGED_OR_DOMAINS,
    )
    async def bcc_rule_update(self, info: Info, input: BccRuleUpdateInput) -> BccRulesPayload:
        keys, patch = ids_from_refs(info, input.bcc_rules, "bccRules"), input.set
        values = BccRuleChanges(
            *map(maybe_value, (patch.match, patch.bcc_to, patch.direction, patch.active))
        )
        await bcc_rules.update_bcc_rules(info.context, keys, values)
        return BccRulesPayload(bcc_rules=await _load_rules(info, keys))

    @mutation(
        "Deletes BCC rules, all or none. Copies that are already in the queue are still sent. "
        "FORBIDDEN if the address of a rule belongs to an account that the caller can't "
        "administer. The deletion is in the security log of that account; if somebody else makes "
        "it, the user gets a message. LIMIT_REACHED for more than 1,000 references (by default).",
        **WRITE_GUARD,
        access=MANAGED_OR_DOMAINS,
    )
    async def bcc_rule_delete(self, info: Info, input: BccRuleDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.bcc_rules, "bccRules")
        await bcc_rules.delete_bcc_rules(info.context, keys)
        return DeletePayload.of_keys("BccRule", keys)


async def _load_rules(info: Info, rule_ids: list[int]) -> list[BccRule]:
    """Load rules in the order of the ids."""
    rows = await info.context.load_many(bcc_rules.load_visible_rules_by_id, rule_ids)
    return [BccRule.from_row(row) for row in rows if row]
