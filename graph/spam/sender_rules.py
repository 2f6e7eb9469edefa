"""GraphQL types, query and mutations of sender rules."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import strawberry
from strawberry import UNSET

from graph.domains.types import Domain
from graph.types.connections import Connection, connection_of_page, page_request
from graph.types.errors import DeletePayload, MutationPayload, Options, attribute_field
from graph.types.fields import Info, query
from graph.types.input_conditions import ConditionsInput
from graph.types.mutations import mutation
from graph.types.object_access import ACCOUNTS, MANAGED_OR_DOMAINS
from graph.types.object_references import ObjectRef, ids_from_refs
from graph.types.object_views import DerivedField, NestedViewField, View
from graph.types.references import (
    DomainRef,
    UserRef,
    domain_selector_from_ref,
    load_visible_user,
    maybe_value,
    value_or_none,
)
from graph.types.row_mapping import (
    NodeView,
    global_id_field,
    lazy_view_factory,
    link,
    selected_columns,
)
from models.errors import InvalidInput, require_found
from models.spam.sender_rules import SenderAction
from models.store.keyset_pages import ordering_name
from models.users.roles import AdminPermission, Scope, UserPermission
from models.validation_constraints import ValidationConstraint
from resolvers.domains import loaders as domain_loaders
from resolvers.spam import sender_rule_mutations, sender_rules
from resolvers.spam.sender_rule_mutations import NewSenderRules, RuleOwner
from resolvers.spam.sender_rules import LIST_ORDERS, SenderRuleConditions, SenderRuleOrder
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

UNKNOWN_ID = 0
WRITE_GUARD: dict[str, Any] = {
    "scope": Scope.SETTINGS,
    "user_permission": UserPermission.SENDER_RULES,
    "admin_permission": AdminPermission.SENDER_RULES,
}


class SenderRuleOwner(NamedTuple):
    """The owner of a sender rule: a user, the users with a tag, or a domain.

    The rule is for all users if all are None.
    """

    user_id: int | None
    tag: str | None
    domain_id: int | None


@strawberry.type(description="Recipients that a sender rule applies to. One of the fields is set.")
class SenderScope(View):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.load_visible_users_by_id,
        lazy_view_factory("graph.users.types", "User"),
        description="User that the rule applies to. Null: the rule applies to other recipients, "
        "or the caller can't see the user.",
    )
    tag: str | None = attribute_field(
        "Tag, case-folded: the rule applies to all users and addresses with the tag. Null: the "
        "rule applies to other recipients."
    )
    domain: Domain | None = link(
        "domain_id",
        domain_loaders.load_visible_domains_by_id,
        Domain.from_row_or_none,
        description="Domain with all its addresses that the rule applies to. Null: the rule "
        "applies to other recipients, or the caller can't see the domain.",
    )
    global_: bool = attribute_field(
        "True if the rule applies to every recipient of the platform.", name="global"
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "global_": DerivedField(
            ("user_id", "tag", "domain_id"),
            lambda *targets: all(target is None for target in targets),
        )
    }


@strawberry.type(
    description=(
        "Rule that treats the mail of some senders as spam, or not as spam. If several match, "
        "rules of the user precede those of a tag, these those of the domain, and these those of "
        "the platform. Among rules of the same rank, BLOCK precedes ALLOW. A rule of a tag, a "
        "domain or the platform does not apply to another administrator whom its author can't "
        "administer."
    )
)
class SenderRule(NodeView):
    action: SenderAction = attribute_field("Treatment of mail from the senders.")
    pattern: str = attribute_field(
        "Senders that match: an address, which includes its subaddresses (RFC 5233) if the pattern "
        "has none; a domain without its subdomains; or *.domain for all subdomains. Case is "
        "ignored, dots are not. The envelope sender or the From address must match."
    )
    scope: SenderScope = attribute_field(
        "Recipients that the sender rule applies to: a user, all users and addresses with a tag, a "
        "domain, or the whole platform."
    )
    comment: str | None = attribute_field("Comment on the rule. Null: none.")
    created_at: datetime = attribute_field("Time when the rule was created.")

    load_batch = staticmethod(sender_rules.load_visible_rules_by_id)
    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "id": global_id_field("SenderRule"),
        "scope": NestedViewField(("user_id", "tag", "domain_id"), SenderRuleOwner, SenderScope),
    }


@strawberry.input(one_of=True, description="Recipients that sender rules apply to.")
class SenderScopeInput:
    user: strawberry.Maybe[UserRef] = attribute_field("User that the rules apply to.")
    tag: strawberry.Maybe[str] = attribute_field(
        "Tag, 1 to 128 characters (case is ignored): the rules apply to all users and addresses "
        "with it. Requires the role ADMIN and the scope FULL."
    )
    domain: strawberry.Maybe[DomainRef] = attribute_field(
        "Domain with all its addresses that the rules apply to. The caller must administer the "
        "domain, else NOT_FOUND. Requires the scope FULL."
    )
    global_: strawberry.Maybe[bool] = attribute_field(
        "True applies the rules to every recipient of the platform; false is refused. Requires "
        "the role ADMIN and the scope FULL.",
        name="global",
    )

    async def resolve_owner(self, info: Info) -> RuleOwner:
        """Return the owner of the rules to create.

        Raises NotFound if the viewer can't see the user, InvalidInput if `global` is false.
        """
        if self.user:
            row = require_found(
                await load_visible_user(info, self.user.value),
                path=["scope", "user"],
            )
            return RuleOwner(user_id=row.id)
        if self.global_ and not self.global_.value:
            text = "Must be true. To select a user, tag or domain, name it instead."
            raise InvalidInput(
                text, constraint=ValidationConstraint.EXCLUSIVE, path=["scope", "global"]
            )
        return RuleOwner(
            tag=maybe_value(self.tag),
            domain=domain_selector_from_ref(self.domain.value, path=("scope", "domain", "id"))
            if self.domain
            else None,
        )


@strawberry.input(description="Conditions on sender rules. All must hold.")
class SenderRuleFilter(ConditionsInput):
    user: UserRef | None = attribute_field(
        "Returns only rules of this user. There are none if the caller can't see the user.",
        default=UNSET,
    )
    tag: str | None = attribute_field(
        "Returns only rules of this tag (case is ignored).", default=UNSET
    )
    domain: DomainRef | None = attribute_field(
        "Returns only rules of this domain. There are none if the caller does not administer it.",
        default=UNSET,
    )
    action: SenderAction | None = attribute_field(
        "Returns only rules with this action.", default=UNSET
    )
    query: str | None = attribute_field(
        "Returns only rules with this text in the pattern or the comment. Case and accents are "
        "ignored. At most 1,000 characters.",
        default=UNSET,
    )

    async def resolve_conditions_or_match_nothing(self, info: Info) -> SenderRuleConditions:
        """Convert the filter to conditions of the resolvers.

        An unknown user or domain selects no rule.
        """
        user = await load_visible_user(info, self.user) if self.user else None
        domain = (
            await domain_loaders.find_administered_domain_by_ref(
                info.context, domain_selector_from_ref(self.domain, path=("filter", "domain", "id"))
            )
            if self.domain
            else None
        )
        return SenderRuleConditions(
            user_id=(user.id if user else UNKNOWN_ID) if self.user else None,
            tag=self.tag or None,
            domain_id=(domain.id if domain else UNKNOWN_ID) if self.domain else None,
            action=value_or_none(self.action),
            query=self.query or None,
        )


@strawberry.input(description="Input of senderRuleCreate.")
class SenderRuleCreateInput(Options):
    scope: SenderScopeInput = attribute_field("Recipients that the sender rules apply to.")
    action: SenderAction = attribute_field(
        "Treatment of mail from the senders. An existing rule with the same pattern "
        "gets this action."
    )
    patterns: list[str] = attribute_field(
        "Senders that match: addresses, domains (also written *@domain), or *.domain for all "
        "subdomains; 1 to 100. Case is ignored, dots of an address are not. The envelope sender or "
        "the From address must match."
    )
    comment: str | None = attribute_field(
        "Comment on the rules, at most 500 characters. Omitted: new rules have none, existing "
        "rules keep theirs. Null removes it.",
        default=UNSET,
    )


@strawberry.input(one_of=True, description="Reference to one sender rule.")
class SenderRuleRef(ObjectRef):
    pass


@strawberry.input(description="Input of senderRuleDelete.")
class SenderRuleDeleteInput(Options):
    sender_rules: list[SenderRuleRef] = attribute_field(
        "Sender rules to delete, 1 to 1,000 by default."
    )


@strawberry.type(description="Payload of senderRuleCreate.")
class SenderRulesPayload(MutationPayload):
    sender_rules: list[SenderRule] = attribute_field(
        "Rules of the given patterns, each once, in the order of the patterns. Rules that did not "
        "have to be changed are contained. Empty if the mutation failed.",
        default_factory=list,
    )


@strawberry.type
class SenderRuleQuery:
    @query(
        "Returns the sender rules (allowed and blocked senders) of the caller; for a USER not "
        "those of tags, the domain or the platform. A DOMAIN_ADMIN also sees the rules of "
        "administered domains, and of tags that users in these domains have. With the permission "
        "SENDER_RULES, a DOMAIN_ADMIN also sees the rules of the users in these domains. An ADMIN "
        "sees all rules.",
        scope=Scope.READ,
        access=ACCOUNTS.with_permissions(AdminPermission.SENDER_RULES),
    )
    async def sender_rules(
        self,
        info: Info,
        filter: SenderRuleFilter | None = UNSET,
        order_by: SenderRuleOrder = SenderRuleOrder.PATTERN_ASC,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[SenderRule]:
        conditions = (
            await filter.resolve_conditions_or_match_nothing(info)
            if filter
            else SenderRuleConditions()
        )
        list_order = LIST_ORDERS[order_by]
        list_ordering = ordering_name(
            f"sender-rules-{order_by}", None if conditions == SenderRuleConditions() else conditions
        )
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            SenderRule,
            await sender_rules.read_rule_page(
                info.context,
                conditions,
                requested_page,
                selected_columns(info, SenderRule),
                order_by,
            ),
            lambda row: list_order.cursor_of_row(row, list_ordering),
            lambda: sender_rules.count_rules(info.context, conditions),
        )


@strawberry.type
class SenderRuleMutation:
    @mutation(
        "Creates sender rules, which allow or block senders: one for each pattern, all or none. "
        "If the user, tag, domain or platform already has a rule with the pattern, that rule is "
        "changed. Rules of domains also require the role DOMAIN_ADMIN and the scope FULL. Rules "
        "of the platform, and of tags of users and addresses, require the role ADMIN and the "
        "scope FULL. LIMIT_REACHED if a user, tag or domain would have more than 1,000 rules, or "
        "the platform more than 10,000.",
        **WRITE_GUARD,
        access=MANAGED_OR_DOMAINS.with_scope(Scope.FULL),
    )
    async def sender_rule_create(
        self, info: Info, input: SenderRuleCreateInput
    ) -> SenderRulesPayload:
        new = NewSenderRules(
            input.action, input.patterns, value_or_none(input.comment), input.comment is not UNSET
        )
        owner = await input.scope.resolve_owner(info)
        keys = await sender_rule_mutations.create_or_update_sender_rules(info.context, owner, new)
        rows = await info.context.load_many(sender_rules.load_visible_rules_by_id, keys)
        return SenderRulesPayload(sender_rules=[SenderRule.from_row(row) for row in rows if row])

    @mutation(
        "Deletes sender rules, which allow or block senders, all or none. A rule of a domain also "
        "requires the role DOMAIN_ADMIN and the scope FULL. A rule of the platform, or of a tag, "
        "requires the role ADMIN and the scope FULL. LIMIT_REACHED for more than 1,000 references "
        "(by default).",
        **WRITE_GUARD,
        access=MANAGED_OR_DOMAINS.with_scope(Scope.FULL),
    )
    async def sender_rule_delete(self, info: Info, input: SenderRuleDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.sender_rules, "senderRules")
        await sender_rule_mutations.delete_sender_rules(info.context, keys)
        return DeletePayload.of_keys("SenderRule", keys)
