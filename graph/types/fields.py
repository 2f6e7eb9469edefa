"""How fields are declared: what they ask of the viewer, and how refusals reach the client."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from typing import Any, Protocol, TypeVar

import strawberry
from strawberry.extensions import FieldExtension
from strawberry.schema_directive import Location
from strawberry.types.field import StrawberryField
from strawberry.utils.str_converters import to_camel_case

import graph.types.enum_registration  # noqa: F401 - before the first field that has an enum
from graph.execution.documents.cost_limits import Cost
from graph.types.input_conditions import CheckConditions, check_conditions, has_conditions
from models.events.journal import Position
from models.users.roles import AdminPermission, Role, Scope, UserPermission
from resolvers.context import Context, Needs

Info = strawberry.Info[Context, None]
Standing = Callable[[Context], Awaitable[Position]]
Resolver = TypeVar("Resolver", bound=Callable[..., Any])


class Declare(Protocol):
    """Makes a field of a resolver; to the type checker it stays a method."""

    def __call__(self, resolver: Resolver, /) -> Resolver: ...


@strawberry.schema_directive(
    # In the order of the alphabet, and the fields too: strawberry prints a directive once more
    # where the sorted schema says it in other words, and the SDL would hold it twice.
    locations=[Location.FIELD_DEFINITION, Location.INPUT_FIELD_DEFINITION, Location.OBJECT],
    name="auth",
    description="Least role, token scope and delegated permission needed.",
)
class Auth:
    admin_permission: AdminPermission | None = strawberry.UNSET
    role: Role | None = strawberry.UNSET
    scope: Scope | None = strawberry.UNSET
    user_permission: UserPermission | None = strawberry.UNSET


PRINTED = frozenset(Auth.__annotations__)


class Guard(FieldExtension):
    """Judge the viewer before anything else runs, and print the rule in the schema."""

    def __init__(self, needs: Needs) -> None:
        self.needs = needs

    def apply(self, field: StrawberryField) -> None:
        rule = Auth()
        for name, value in asdict(self.needs).items():
            if value and name in PRINTED:
                setattr(rule, name, value)
        if rule not in field.directives:  # another schema may have been made of these types
            field.directives = [*field.directives, rule]

    def refuse(self, raw: Any) -> Any:
        """Refuse the viewer if the rule says so, before arguments are converted or checked.

        Raises Unauthenticated or Forbidden; returns the field's value if that tells the refusal,
        and None if the viewer is let in.
        """
        raw.context.viewer.require(self.needs)

    async def resolve_async(
        self, next_: Callable[..., Any], source: Any, info: Info, **kwargs: Any
    ) -> Any:
        info.context.viewer.require(self.needs)
        return await next_(source, info, **kwargs)


class GuardStream(Guard):
    """The same for subscriptions, whose resolvers yield."""

    async def resolve_async(  # type: ignore[override]  # ty: ignore[incompatible-method-override]
        self, next_: Callable[..., Any], source: Any, info: Info, **kwargs: Any
    ) -> AsyncIterator[Any]:
        info.context.viewer.require(self.needs)
        for name, value in kwargs.items():
            check_conditions(value, (to_camel_case(name),))
        async for item in next_(source, info, **kwargs):
            info.context.viewer.require(self.needs)  # a token may have ended since
            yield item


def field(description: str, *columns: str, cost: int = 0, **needs: Any) -> Declare:
    """A computed field of an object the viewer has reached, made from these columns of its row.

    `cost` is what it is priced at, where that is more than the usual: a point is about ten
    microseconds of work.
    """
    guards: list[FieldExtension] = [Guard(Needs(**needs))] if needs else []

    def declare(resolver: Resolver, /) -> Resolver:
        made: Declare = strawberry.field(
            description=description,
            extensions=_checked(resolver, guards),
            metadata={"columns": columns},
            directives=[Cost(weight=cost)] if cost else [],
        )
        return made(resolver)

    return declare


def _checked(resolver: Callable[..., Any], guards: list[FieldExtension]) -> list[FieldExtension]:
    """Return the guards, and the check of filters and selections if there are some.

    The last extension is asked first: the guard.
    """
    return [CheckConditions(), *guards] if has_conditions(resolver) else guards


def query(description: str, **needs: Any) -> Declare:
    """A root field; `needs` are the arguments of `Needs`, and of `@auth`."""
    asked: dict[str, Any] = {"role": Role.USER, **needs}
    guards: list[FieldExtension] = [Guard(Needs(**asked))]

    def declare(resolver: Resolver, /) -> Resolver:
        extensions = _checked(resolver, guards)
        made: Declare = strawberry.field(description=description, extensions=extensions)
        return made(resolver)

    return declare


def subscription(description: str, *, standing: Standing | None = None, **needs: Any) -> Declare:
    """A stream; the viewer is judged before each event.

    With `standing`, which says where the viewer's streams of the journal stand, it is shared
    by all that ask the same with the same rights: its argument `after` is a position, its
    items have a `cursor` and say whether they `has_more`, and it goes on from its `trail`.
    """
    declare: Declare = strawberry.subscription(
        description=description,
        extensions=[GuardStream(Needs(**needs))],
        metadata={"standing": standing},
    )
    return declare
