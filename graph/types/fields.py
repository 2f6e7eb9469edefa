"""Declaration of fields with guards: computed fields, root queries and subscriptions."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from inspect import signature
from typing import Any, Protocol, TypeVar

import strawberry
from strawberry.extensions import FieldExtension
from strawberry.schema_directive import Location
from strawberry.types.base import StrawberryOptional
from strawberry.types.field import StrawberryField
from strawberry.utils.str_converters import to_camel_case

import graph.types.enum_registration  # noqa: F401 - before the first field that has an enum
from graph.execution.documents.cost_limits import Cost
from graph.types.input_conditions import (
    CheckConditions,
    OmitAbsentConditions,
    drop_absent_conditions,
    has_conditions,
    optional_condition_arguments,
    require_valid_conditions,
)
from graph.types.object_access import ObjectAccess
from models.events.journal import StreamPositions
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from resolvers.context import Context
from resolvers.viewer import GuardRule

Info = strawberry.Info[Context, None]
LoadPositions = Callable[[Context], Awaitable[StreamPositions]]
Resolver = TypeVar("Resolver", bound=Callable[..., Any])


class FieldDecorator(Protocol):
    """A decorator that turns a resolver into a field. For type checkers it stays a method."""

    def __call__(self, resolver: Resolver, /) -> Resolver: ...


@strawberry.schema_directive(
    # Locations and fields are in alphabetical order: else strawberry's text differs from the
    # sorted schema, and the SDL would contain the directive twice.
    locations=[
        Location.FIELD_DEFINITION,
        Location.INPUT_FIELD_DEFINITION,
        Location.INTERFACE,
        Location.OBJECT,
    ],
    name="auth",
    description="Lowest role, scope and permission that a field needs.",
)
class Auth:
    admin_permission: AdminPermission | None = strawberry.UNSET
    role: Role | None = strawberry.UNSET
    scope: Scope | None = strawberry.UNSET
    user_permission: UserPermission | None = strawberry.UNSET


AUTH_ARGUMENTS = frozenset(Auth.__annotations__)


class NullableField(FieldExtension):
    """Makes a field nullable, so that its error removes no other field from the response.

    Every field that can fail has it: a field with a guard, a field with arguments, and a field
    whose resolver checks the viewer, or reads stored content or another server.
    """

    def apply(self, field: StrawberryField) -> None:
        if not isinstance(field.type, StrawberryOptional):
            field.type = StrawberryOptional(field.type)


class FieldGuard(FieldExtension):
    """A field extension that checks the guard rule first and adds `@auth` to the schema."""

    def __init__(self, rule: GuardRule) -> None:
        self.rule = rule

    def apply(self, field: StrawberryField) -> None:
        rule = Auth()
        for name, value in asdict(self.rule).items():
            if value and name in AUTH_ARGUMENTS:
                setattr(rule, name, value)
        if rule not in field.directives:  # another schema may use the same types
            field.directives = [*field.directives, rule]

    def require_guard_or_return_refusal(self, raw_info: Any) -> Any:
        """Check the rule before arguments are converted.

        Returns None if the viewer is allowed. Otherwise raises Unauthenticated or Forbidden, or
        returns the field's value if that value contains the error.
        """
        raw_info.context.viewer.require(self.rule)

    async def resolve_async(
        self, next_: Callable[..., Any], source: Any, info: Info, **kwargs: Any
    ) -> Any:
        info.context.viewer.require(self.rule)
        return await next_(source, info, **kwargs)


class SubscriptionGuard(FieldGuard):
    """A guard of subscriptions, which also checks the rule before each event."""

    async def resolve_async(  # type: ignore[override]  # ty: ignore[incompatible-method-override]
        self, next_: Callable[..., Any], source: Any, info: Info, **kwargs: Any
    ) -> AsyncIterator[Any]:
        info.context.viewer.require(self.rule)
        names = optional_condition_arguments(info._field)  # noqa: SLF001
        drop_absent_conditions(kwargs, names, info._raw_info)  # noqa: SLF001
        for name, value in kwargs.items():
            require_valid_conditions(value, (to_camel_case(name),))
        async for item in next_(source, info, **kwargs):
            info.context.viewer.require(self.rule)  # the token may have expired
            yield item


def field(
    description: str,
    *columns: str,
    access: ObjectAccess | None = None,
    cost: int = 1,
    can_fail: bool = False,
    checks_conditions: bool = True,
    default_page_size: int | None = None,
    **rule: Any,
) -> FieldDecorator:
    """Declare a computed field of an object, with the columns of the row that it needs.

    `access` names the users for which a field of a user can be read. `cost` is its cost in
    points; a point is about 10 microseconds of work. `default_page_size` is the default number of
    items of a connection; None: that of USUAL_PAGE_SIZES. `rule` are the arguments of GuardRule.
    A field with a rule or with arguments is nullable; `can_fail` makes another field nullable.
    Without `checks_conditions` the resolver calls `require_valid_conditions`, after it has checked
    that the viewer can read the list.
    """
    guards: list[FieldExtension] = [FieldGuard(GuardRule(**rule))] if rule else []
    charge = Cost(weight=cost, default_page_size=default_page_size or strawberry.UNSET)

    def decorate(resolver: Resolver, /) -> Resolver:
        decorator: FieldDecorator = strawberry.field(
            description=description,
            extensions=[
                *_with_condition_check(resolver, guards, checks=checks_conditions),
                *([NullableField()] if can_fail or rule or _has_arguments(resolver) else []),
            ],
            metadata={"columns": columns, "access": access},
            directives=[] if charge == Cost() else [charge],
        )
        return decorator(resolver)

    return decorate


def _with_condition_check(
    resolver: Callable[..., Any], guards: list[FieldExtension], *, checks: bool = True
) -> list[FieldExtension]:
    """Return the guards, and what checks conditions if an argument is a filter or selection.

    With `checks=False` the resolver checks them. The last extension runs first: the guard.
    """
    if not has_conditions(resolver):
        return guards
    checked: list[FieldExtension] = [CheckConditions()] if checks else []
    return [*checked, OmitAbsentConditions(), *guards]


def _has_arguments(resolver: Callable[..., Any]) -> bool:
    return not signature(resolver).parameters.keys() <= {"self", "info"}


def query(
    description: str, *, access: ObjectAccess | None = None, cost: int = 1, **rule: Any
) -> FieldDecorator:
    """Declare a root query field. `rule` are the arguments of GuardRule; default: role USER.

    `access` names the users or domains that it can return data of. `cost` is as in `field`. The
    field is nullable, except if everybody can read it.
    """
    guard_rule: dict[str, Any] = {"role": Role.USER, **rule}
    guards: list[FieldExtension] = [FieldGuard(GuardRule(**guard_rule))]

    def decorate(resolver: Resolver, /) -> Resolver:
        extensions = _with_condition_check(resolver, guards)
        if guard_rule["role"] is not Role.PUBLIC or _has_arguments(resolver):
            extensions = [*extensions, NullableField()]
        decorator: FieldDecorator = strawberry.field(
            description=description,
            extensions=extensions,
            metadata={"access": access},
            directives=[] if cost == 1 else [Cost(weight=cost)],
        )
        return decorator(resolver)

    return decorate


def subscription(
    description: str,
    *,
    access: ObjectAccess | None = None,
    load_positions: LoadPositions | None = None,
    item_type: type | None = None,
    **rule: Any,
) -> FieldDecorator:
    """Declare a subscription. The guard rule is checked before each event.

    `access` names the users or domains that it can return data of. `load_positions` loads the
    current positions of the viewer's streams; with it, equal subscriptions share one execution.
    Such a field has an argument `after` with positions, its items have `cursor` and `has_more`,
    and it starts at the context's `subscription_start`. `item_type` is the GraphQL type of the
    items, if the resolver also yields a PositionUpdate, which has no result.
    """
    declare: FieldDecorator = strawberry.subscription(
        graphql_type=item_type,
        description=description,
        extensions=[SubscriptionGuard(GuardRule(**rule))],
        metadata={"load_positions": load_positions, "access": access},
    )
    return declare
