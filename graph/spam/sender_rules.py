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
from graph.types.object_references import ObjectRef, ids_from_refs
from graph.types.object_views import DerivedField, NestedViewField, View
from graph.types.references import (
    DomainRef,
    UserRef,
    domain_selector_from_ref,
    load_user_or_viewer,
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
from models.store.keyset_pages import Cursor, ordering_name
from models.users.roles import AdminPermission, Scope, UserPermission
from models.validation_constraints import ValidationConstraint
from resolvers.domains import loaders as domain_loaders
from resolvers.spam import sender_rule_mutations, sender_rules
from resolvers.spam.sender_rule_mutations import NewSenderRules, RuleOwner
from resolvers.spam.sender_rules import CURSOR_KIND, SenderRuleConditions
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

UNKNOWN_ID = 0
WRITE_GUARD: dict[str, Any] = {
    "scope": Scope.SETTINGS,
    "user_permission": UserPermission.SPAM_POLICY,
    "admin_permission": AdminPermission.SPAM_POLICY,
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
        description="User that the rule applies to. Null: the rule applies to others, or the "
        "caller can't see the user.",
    )
    tag: str | None = attribute_field(
        "Tag, case-folded: the rule applies to all users and addresses with the tag."
    )
    domain: Domain | None = link(
        "domain_id",
        domain_loaders.load_visible_domains_by_id,
        Domain.from_row_or_none,
        description="Domain with all its addresses that the rule applies to. Null: the rule "
        "applies to others, or the caller can't see the domain.",
    )
    global_: bool = attribute_field(
        "True if the rule applies to every recipient of the platform.", name="global"
    )

    derived_fields: ClassVar[Mapping[str, DerivedField]] = {
        "global_": DerivedField(
            ("user_id", "tag", "domain_id"), lambda *whose: all(one is None for one in whose)
        )
    }


@strawberry.type(description="A rule that mail of some senders is never, or always, spam.")
class SenderRule(NodeView):
    action: SenderAction = attribute_field("Treatment of mail from the senders.")
    pattern: str = attribute_field(
        "Senders that match: an address, which includes its subaddresses (RFC 5233) "
        "if the pattern has none; a domain without its subdomains; or *.domain for "
        "all subdomains."
    )
    scope: SenderScope = attribute_field("Recipients that the rule applies to.")
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
        "Tag: the rules apply to all users and addresses with it. Requires the role ADMIN."
    )
    domain: strawberry.Maybe[DomainRef] = attribute_field(
        "Domain with all its addresses that the rules apply to. The caller must "
        "administer the domain."
    )
    global_: strawberry.Maybe[bool] = attribute_field(
        "Applies the rules to every recipient of the platform; must be true. "
        "Requires the role ADMIN.",
        name="global",
    )

    async def resolve_owner(self, info: Info) -> RuleOwner:
        """Return the owner of the rules to create.

        Raises NotFound if the viewer can't see the user, Invalid if `global` is false.
        """
        if self.user:
            row = require_found(
                await load_user_or_viewer(info, self.user.value), path=["scope", "user"]
            )
            return RuleOwner(user_id=row.id)
        if self.global_ and not self.global_.value:
            text = "Must be true, or name a user, tag or domain instead"
            raise InvalidInput(
                text, constraint=ValidationConstraint.EXCLUSIVE, path=["scope", "global"]
            )
        return RuleOwner(
            tag=maybe_value(self.tag),
            domain=domain_selector_from_ref(self.domain.value, path=("scope", "domain", "id"))
            if self.domain
            else None,
        )


@strawberry.input(description="Conditions on sender rules; all must hold.")
class SenderRuleFilter(ConditionsInput):
    user: UserRef | None = attribute_field("User that the rules apply to.", default=UNSET)
    tag: str | None = attribute_field("Tag that the rules apply to, in any case.", default=UNSET)
    domain: DomainRef | None = attribute_field("Domain that the rules apply to.", default=UNSET)
    action: SenderAction | None = attribute_field(
        "Treatment of mail that the rules set.", default=UNSET
    )
    query: str | None = attribute_field(
        "Part of the pattern or the comment, in any case.", default=UNSET
    )

    async def resolve_conditions(self, info: Info) -> SenderRuleConditions:
        """Convert the filter to conditions of the resolvers.

        An unknown user or domain selects no rule.
        """
        user = await load_user_or_viewer(info, self.user) if self.user else None
        domain = (
            await domain_loaders.find_referenced_domain(
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
    scope: SenderScopeInput = attribute_field("Recipients that the rules apply to.")
    action: SenderAction = attribute_field(
        "Treatment of mail from the senders. An existing rule with the same pattern "
        "gets this action."
    )
    patterns: list[str] = attribute_field(
        "Senders that match: addresses, domains (also written *@domain), or "
        "*.domain for all subdomains; 1 to 100."
    )
    comment: str | None = attribute_field(
        "Comment on the rules, at most 500 characters. Default: none; existing rules keep theirs.",
        default=UNSET,
    )


@strawberry.input(one_of=True, description="Names one sender rule.")
class SenderRuleRef(ObjectRef):
    pass


@strawberry.input(description="Input of senderRuleDelete.")
class SenderRuleDeleteInput(Options):
    sender_rules: list[SenderRuleRef] = attribute_field("The sender rules to delete.")


@strawberry.type(description="Payload of senderRuleCreate.")
class SenderRulesPayload(MutationPayload):
    sender_rules: list[SenderRule] = attribute_field(
        "The created or changed rules, each once, in the order of the patterns.",
        default_factory=list,
    )


@strawberry.type
class SenderRuleQuery:
    @query(
        "Returns the sender rules of the signed-in user. A DOMAIN_ADMIN also sees "
        "the rules of administered domains and of tags of their users, and with the "
        "permission SPAM_POLICY the rules of the users; an ADMIN sees all rules. In "
        "alphabetical order of the patterns.",
        scope=Scope.READ,
    )
    async def sender_rules(
        self,
        info: Info,
        filter: SenderRuleFilter | None = UNSET,
        first: int | None = UNSET,
        after: str | None = UNSET,
        last: int | None = UNSET,
        before: str | None = UNSET,
    ) -> Connection[SenderRule]:
        conditions = await filter.resolve_conditions(info) if filter else SenderRuleConditions()
        list_ordering = ordering_name(
            CURSOR_KIND, None if conditions == SenderRuleConditions() else conditions
        )
        requested_page = page_request(list_ordering, first, after, last, before)
        return await connection_of_page(
            info,
            SenderRule,
            await sender_rules.read_rule_page(
                info.context, conditions, requested_page, selected_columns(info, SenderRule)
            ),
            lambda row: Cursor(requested_page.ordering, row.pattern, row.id),
            lambda: sender_rules.count_rules(info.context, conditions),
        )


@strawberry.type
class SenderRuleMutation:
    @mutation(
        "Creates sender rules, one for each pattern, or changes existing ones. A "
        "DOMAIN_ADMIN can do so for administered domains and their users, an ADMIN "
        "for everyone. A user, tag or domain can have 1,000 rules, the platform "
        "10,000.",
        **WRITE_GUARD,
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
        "Deletes sender rules, all or none. Who can create a rule can delete it.", **WRITE_GUARD
    )
    async def sender_rule_delete(self, info: Info, input: SenderRuleDeleteInput) -> DeletePayload:
        keys = ids_from_refs(info, input.sender_rules, "senderRules")
        await sender_rule_mutations.delete_sender_rules(info.context, keys)
        return DeletePayload.of_keys("SenderRule", keys)
