"""GraphQL types, query and mutations of sender rules."""

from collections.abc import Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, NamedTuple

import strawberry
from strawberry import UNSET

from graph.domains.types import Domain
from graph.types.connections import Connection, connected, page_asked
from graph.types.errors import DeletePayload, IdsInput, MutationPayload, Options, leaf
from graph.types.fields import Info, query
from graph.types.input_conditions import Conditions
from graph.types.mutations import mutation
from graph.types.object_views import Made, View, Viewed
from graph.types.references import UserRef, given, keys_of, plain, user_of
from graph.types.row_mapping import Shape, columns, identified, link, shaped
from models.errors import Invalid, found
from models.spam.sender_rules import SenderAction
from models.store.keyset_pages import Cursor, ordering
from models.users.roles import AdminPermission, Scope, UserPermission
from resolvers.domains import loaders as domain_loaders
from resolvers.spam import sender_rule_mutations, sender_rules
from resolvers.spam.sender_rule_mutations import NewRules, Whom
from resolvers.spam.sender_rules import ORDER, RuleWhere
from resolvers.users import loaders as user_loaders

if TYPE_CHECKING:
    from graph.users.types import User

NOBODY = 0
WRITES: dict[str, Any] = {
    "scope": Scope.SETTINGS,
    "user_permission": UserPermission.SPAM_POLICY,
    "admin_permission": AdminPermission.SPAM_POLICY,
}


class Whose(NamedTuple):
    """The owner of a sender rule: a user, the users with a tag, or a domain.

    The rule is for all users if all are None.
    """

    user_id: int | None
    tag: str | None
    domain_id: int | None


@strawberry.type(description="For whom a rule is: one of these.")
class SenderScope(View):
    user: Annotated["User", strawberry.lazy("graph.users.types")] | None = link(
        "user_id",
        user_loaders.by_ids,
        shaped("graph.users.types", "User"),
        description="One account.",
    )
    tag: str | None = leaf("All accounts and addresses with this label, case folded.")
    domain: Domain | None = link(
        "domain_id", domain_loaders.by_ids, Domain.maybe, description="All addresses of a domain."
    )
    global_: bool = leaf("Everybody.", name="global")

    made: ClassVar[Mapping[str, Made]] = {
        "global_": Made(
            ("user_id", "tag", "domain_id"), lambda *whose: all(one is None for one in whose)
        )
    }


@strawberry.type(description="Mail of these senders is never spam, or always.")
class SenderRule(Shape):
    action: SenderAction = leaf("What becomes of their mail.")
    pattern: str = leaf(
        "An address, with any label where it has none; a domain; or *.domain, all below it."
    )
    scope: SenderScope = leaf("For whom.")
    comment: str | None = leaf("Remark.")
    created_at: datetime = leaf("Creation.")

    batch = staticmethod(sender_rules.by_ids)
    made: ClassVar[Mapping[str, Made]] = {
        "id": identified("SenderRule"),
        "scope": Viewed(("user_id", "tag", "domain_id"), Whose, SenderScope),
    }


@strawberry.input(one_of=True, description="For whom rules are.")
class SenderScopeInput:
    user: strawberry.Maybe[UserRef] = leaf("One account.")
    tag: strawberry.Maybe[str] = leaf("All accounts and addresses with this label; for ADMIN.")
    domain: strawberry.Maybe[str] = leaf("All addresses of this domain; for DOMAIN_ADMIN.")
    global_: strawberry.Maybe[bool] = leaf("Everybody; true, for ADMIN.", name="global")

    async def whom(self, info: Info) -> Whom:
        """Return the owner of the rules to create.

        Raises NotFound if the viewer can't see the user, Invalid if `global` is false.
        """
        if self.user:
            row = found(await user_of(info, self.user.value), path=["scope", "user"])
            return Whom(user_id=row.id)
        if self.global_ and not self.global_.value:
            text = "name somebody, or say true"
            raise Invalid(text, constraint="exclusive", path=["scope", "global"])
        return Whom(tag=given(self.tag), domain=given(self.domain))


@strawberry.input(description="Which rules.")
class SenderRuleFilter(Conditions):
    user: UserRef | None = leaf("Of this account.", default=UNSET)
    tag: str | None = leaf("For this label, in any case.", default=UNSET)
    domain: str | None = leaf("Of this domain.", default=UNSET)
    action: SenderAction | None = leaf("Only these.", default=UNSET)
    query: str | None = leaf("Partial match of pattern or comment.", default=UNSET)

    async def where(self, info: Info) -> RuleWhere:
        """Convert the filter to conditions of the resolvers.

        An unknown user or domain selects no rule.
        """
        user = await user_of(info, self.user) if self.user else None
        domain = await domain_loaders.named(info.context, self.domain) if self.domain else None
        return RuleWhere(
            user_id=(user.id if user else NOBODY) if self.user else None,
            tag=self.tag or None,
            domain_id=(domain.id if domain else NOBODY) if self.domain else None,
            action=plain(self.action),
            query=self.query or None,
        )


@strawberry.input(description="Input of senderRuleCreate.")
class SenderRuleCreateInput(Options):
    scope: SenderScopeInput = leaf("For whom.")
    action: SenderAction = leaf("What becomes of their mail; a rule that says other is turned.")
    patterns: list[str] = leaf(
        "Addresses, domains, *@domain, or *.domain for all below it; at most 100."
    )
    comment: str | None = leaf(
        "Remark, at most 500 characters; absent = that of a rule there is stays.", default=UNSET
    )


@strawberry.type(description="Answer of senderRuleCreate.")
class SenderRulesPayload(MutationPayload):
    rules: list[SenderRule] = leaf("Each once, in the order of patterns.", default_factory=list)


@strawberry.type
class SenderRuleQuery:
    @query(
        "By pattern: the own; for DOMAIN_ADMIN those of the domains, and of tags that accounts "
        "there have, with SPAM_POLICY those of the accounts, too; for ADMIN all.",
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
        where = await filter.where(info) if filter else RuleWhere()
        list_ordering = ordering(ORDER, None if where == RuleWhere() else where)
        requested_page = page_asked(list_ordering, first, after, last, before)
        return await connected(
            info,
            SenderRule,
            await sender_rules.page(info.context, where, requested_page, columns(info, SenderRule)),
            lambda row: Cursor(requested_page.ordering, row.pattern, row.id),
            lambda: sender_rules.count(info.context, where),
        )


@strawberry.type
class SenderRuleMutation:
    @mutation(
        "Makes rules, one for each pattern. A user's own with SPAM_POLICY; of others a "
        "DOMAIN_ADMIN those of the domains and their accounts, an ADMIN all. At most 1,000 of an "
        "account, tag or domain, and 10,000 for everybody.",
        **WRITES,
    )
    async def sender_rule_create(
        self, info: Info, input: SenderRuleCreateInput
    ) -> SenderRulesPayload:
        new = NewRules(
            input.action, input.patterns, plain(input.comment), input.comment is not UNSET
        )
        owner = await input.scope.whom(info)
        keys = await sender_rule_mutations.create(info.context, owner, new)
        rows = await info.context.load_all(sender_rules.by_ids, keys)
        return SenderRulesPayload(rules=[SenderRule.of(row) for row in rows if row])

    @mutation("All or none, by whoever may make them.", **WRITES)
    async def sender_rule_delete(self, info: Info, input: IdsInput) -> DeletePayload:
        await sender_rule_mutations.remove(info.context, keys_of(info, "SenderRule", input.ids))
        return DeletePayload(deleted_ids=input.ids)
