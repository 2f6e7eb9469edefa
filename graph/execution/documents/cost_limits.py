"""Limits on the size and the cost of one operation."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import strawberry
from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLField,
    GraphQLNamedType,
    GraphQLSchema,
    InlineFragmentNode,
    IntValueNode,
    ListValueNode,
    OperationDefinitionNode,
    SelectionNode,
    SelectionSetNode,
    ValueNode,
    VariableNode,
    get_named_type,
    is_composite_type,
)
from graphql.language import Visitor, visit
from strawberry.schema_directive import Location

from graph.execution.documents.overlap_limits import Comparisons
from graph.execution.strawberry_definitions import origin
from models.users.roles import Role

CEILING = 10**12  # 800 fragments that double would make a number of 240 digits
LEVELS = 80  # nested selections and spreads, far more than a depth of 16 needs
PAGE = 20
SIZES = ("first", "last", "ids")
WHOLE_SCHEMA = 3000  # charged again for each alias in it
ONE_TYPE = 20


@strawberry.schema_directive(
    locations=[Location.FIELD_DEFINITION],
    name="cost",
    description="Price of the field in the cost limit.",
)
class Cost:
    per_item: bool = strawberry.directive_field(name="perItem", default=False)
    weight: int = strawberry.directive_field(name="weight", default=1)


@dataclass(frozen=True, slots=True)
class Limits:
    """The highest values of one document and operation."""

    depth: int = 16  # nested fields
    aliases: int = 60
    fields: int = 1000  # with fragments expanded, without `__typename`
    root_fields: int = 50
    directives: int = 100
    comparisons: int = 8_000  # pairs of fields and fragments: see overlap_limits
    members: int = 500  # of literal objects in the document: errors show them in full
    cost: int = 10_000
    cost_of_admins: int = 100_000
    deadline: float = 10.0  # seconds

    def budget(self, role: Role) -> int:
        """Return the highest cost of one operation for a role."""
        return self.cost_of_admins if role.includes(Role.DOMAIN_ADMIN) else self.cost


class Size(NamedTuple):
    """The size of a selection set with its fragments expanded.

    `root_fields` is the number of fields on the first level.
    """

    depth: int = 0
    fields: int = 0
    top: int = 0
    aliases: int = 0
    directives: int = 0

    def beside(self, other: "Size") -> "Size":
        """Return the size of both selections in one selection set."""
        sums = (min(a + b, CEILING) for a, b in zip(self[1:], other[1:], strict=True))
        return Size(max(self.depth, other.depth), *sums)


TOO_DEEP = Size(depth=CEILING)


class Ruler:
    """The measurement of the selections of one document. Each fragment is measured once."""

    def __init__(self, document: DocumentNode) -> None:
        self.fragments = {
            node.name.value: node
            for node in document.definitions
            if isinstance(node, FragmentDefinitionNode)
        }
        self._memo: dict[str, Size] = {}

    def measure(self, selection: SelectionSetNode | None, level: int = 0) -> Size:
        """Return the size of a selection set. Unknown fragments and cycles count nothing."""
        if selection is None:
            return Size()
        if level > LEVELS:
            return TOO_DEEP
        total = Size()
        for node in selection.selections:
            total = total.beside(self._measure_one(node, level + 1))
        return total

    def _measure_one(self, node: SelectionNode, level: int) -> Size:
        bare = Size(directives=len(node.directives or ()))
        match node:
            case FieldNode():
                return bare.beside(self._field(node, level))
            case FragmentSpreadNode():
                return bare.beside(self._fragment(node.name.value, level))
            case InlineFragmentNode():
                return bare.beside(self.measure(node.selection_set, level))
            case _:
                return bare

    def _field(self, node: FieldNode, level: int) -> Size:
        name, below = node.name.value, self.measure(node.selection_set, level)
        free = name.startswith("__") and below.depth < CEILING  # limited by graphql-core
        return below._replace(
            depth=0 if free else below.depth + 1,
            fields=below.fields + (name != "__typename"),
            top=1,
            aliases=below.aliases + (node.alias is not None),
        )

    def _fragment(self, name: str, level: int) -> Size:
        if name not in self._memo:
            self._memo[name] = Size()  # before descending: a cycle ends here
            if node := self.fragments.get(name):
                self._memo[name] = self.measure(node.selection_set, level)
        return self._memo[name]


def _members(document: DocumentNode) -> int:
    found = _Members()
    visit(document, found)
    return found.count


class _Members(Visitor):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def enter_object_field(self, *_: Any) -> None:
        self.count += 1


def excesses(document: DocumentNode, ruler: Ruler, limits: Limits) -> Iterator[str]:
    """Yield a text for each limit that a document exceeds.

    All definitions count, since validation reads them all.
    """
    total = Size()
    for node in document.definitions:
        if isinstance(node, OperationDefinitionNode | FragmentDefinitionNode):
            size = ruler.measure(node.selection_set)
            own = Size(directives=len(node.directives or ()))
            root = isinstance(node, OperationDefinitionNode)
            total = Size(*map(max, total, size.beside(own)._replace(top=size.top if root else 0)))
    for what, count, most in (
        ("levels", total.depth, limits.depth),
        ("aliases", total.aliases, limits.aliases),
        ("fields", total.fields, limits.fields),
        ("root fields", total.top, limits.root_fields),
        ("directives", total.directives, limits.directives),
        ("members of objects", _members(document), limits.members),
    ):
        if count > most:
            yield f"{what}: {most} allowed, more asked for"
    if Comparisons(ruler.fragments, limits.comparisons).exceed(document):
        yield "fields and fragments beside each other: fewer allowed"


@dataclass(frozen=True, slots=True)
class Pages:
    """The number of objects that a field returns, given by literals or variables."""

    known: int | None
    variables: tuple[str, ...]
    default: int

    def count(self, values: Mapping[str, object]) -> int:
        """Return the number of objects with these variables."""
        found = [] if self.known is None else [self.known]
        found += [n for name in self.variables if (n := _count(values.get(name))) is not None]
        return max(found, default=self.default)


def _count(value: object) -> int | None:
    match value:
        case bool():
            return None
        case int() | float():
            return int(min(max(value, 0), CEILING))
        case list():
            return len(value)
        case _:
            return None


@dataclass(frozen=True, slots=True, eq=False)
class Price:
    """The cost of a selection as a formula of the variables.

    It is `fixed_cost`, and for each of `parts` the number of objects times the sum of the cost
    per object and the cost of its selection.
    """

    fixed: int = 0
    parts: tuple[tuple[Pages, int, "Price"], ...] = ()

    def total(self, values: Mapping[str, object], memo: dict[int, int] | None = None) -> int:
        """Return the cost with these variables. Each shared part is computed once."""
        if not self.parts:
            return self.fixed
        memo = {} if memo is None else memo
        if id(self) not in memo:
            sums = (
                pages.count(values) * (each + below.total(values, memo))
                for pages, each, below in self.parts
            )
            memo[id(self)] = min(self.fixed + sum(sums), CEILING)
        return memo[id(self)]

    def times(self, pages: Pages, each: int = 0) -> "Price":
        """Return the cost of a page of objects, each with this cost and a cost per object."""
        if pages.variables or self.parts:
            return Price(0, ((pages, each, self),))
        return Price(min(pages.count({}) * (each + self.fixed), CEILING))

    def and_(self, other: "Price") -> "Price":
        """Return the sum of both costs.

        Several parts become one part, since nested fragments would double their number.
        """
        if len(other.parts) > 1:
            return Price(self.fixed, (*self.parts, (ONCE, 0, other)))
        return Price(min(self.fixed + other.fixed, CEILING), self.parts + other.parts)


ONCE = Pages(1, (), 1)
FREE = Price()


class Tariff(NamedTuple):
    """The cost of a selection: charged once, and charged per object of a connection's page."""

    once: Price = FREE
    each: Price = FREE

    def and_(self, other: "Tariff") -> "Tariff":
        """Return the cost of both selections in one selection set."""
        return Tariff(self.once.and_(other.once), self.each.and_(other.each))

    @property
    def whole(self) -> Price:
        return self.once.and_(self.each)


class Clerk:
    """The computation of the cost of a valid document's operations. Each fragment counts once."""

    def __init__(self, schema: GraphQLSchema, ruler: Ruler) -> None:
        self.schema = schema
        self.ruler = ruler
        self._memo: dict[str, Tariff] = {}

    def price(self, operation: OperationDefinitionNode) -> Price:
        """Return the cost of an operation as a formula of its variables."""
        root = self.schema.get_root_type(operation.operation)
        return self._selection(operation.selection_set, root).whole

    def _selection(
        self, selection: SelectionSetNode | None, parent: GraphQLNamedType | None
    ) -> Tariff:
        total = Tariff()
        for node in selection.selections if selection else ():
            total = total.and_(self._one(node, parent))
        return total

    def _one(self, node: SelectionNode, parent: GraphQLNamedType | None) -> Tariff:
        match node:
            case FieldNode() if node.name.value.startswith("__"):
                return Tariff(self._introspection(node))
            case FieldNode():
                price = self._field(node, parent)
                wrapped = _is_connection(parent) and node.name.value in ("edges", "nodes")
                return Tariff(each=price) if wrapped else Tariff(once=price)
            case FragmentSpreadNode():
                return self._fragment(node.name.value)
            case InlineFragmentNode():
                condition = node.type_condition
                inner = self.schema.get_type(condition.name.value) if condition else parent
                return self._selection(node.selection_set, inner)
            case _:
                return Tariff()

    def _fragment(self, name: str) -> Tariff:
        if name not in self._memo:
            fragment = self.ruler.fragments[name]
            parent = self.schema.get_type(fragment.type_condition.name.value)
            self._memo[name] = self._selection(fragment.selection_set, parent)
        return self._memo[name]

    def _introspection(self, node: FieldNode) -> Price:
        weight = {"__schema": WHOLE_SCHEMA, "__type": ONE_TYPE}.get(node.name.value, 0)
        aliases = self.ruler.measure(node.selection_set).aliases
        return Price(weight * (1 + aliases))

    def _field(self, node: FieldNode, parent: GraphQLNamedType | None) -> Price:
        name: str = node.name.value
        definition: GraphQLField = getattr(parent, "fields", {})[name]
        kind = get_named_type(definition.type)
        below = self._selection(node.selection_set, kind)
        envelope = _is_connection(parent) and name in ("edges", "pageInfo")
        cost = cost_of(definition)
        weight = cost.weight if cost else int(is_composite_type(kind) and not envelope)
        each = weight if cost and cost.per_item else 0
        pages = _pages(node, definition, kind)
        if pages is None:
            return Price(weight).and_(below.whole)
        price = below.each.times(pages, each).and_(below.once)
        if not _is_connection(kind):
            price = below.whole.times(pages, each)
        return price if each else Price(weight).and_(price)


def _is_connection(kind: GraphQLNamedType | None) -> bool:
    return kind is not None and kind.name.endswith("Connection")


def cost_of(definition: GraphQLField) -> Cost | None:
    """Return the `@cost` directive of a field; None if it has none."""
    field = origin(definition)
    found = (d for d in getattr(field, "directives", ()) if isinstance(d, Cost))
    return next(found, None)


def _pages(node: FieldNode, definition: GraphQLField, kind: GraphQLNamedType) -> Pages | None:
    """Return the number of objects of a field; None if it isn't a list with a size."""
    names = [name for name in SIZES if name in definition.args]
    if not names and not _is_connection(kind):
        return None
    given = {a.name.value: a.value for a in node.arguments or () if a.name.value in names}
    literals = [n for value in given.values() if (n := _literal(value)) is not None]
    variables = tuple(v.name.value for v in given.values() if isinstance(v, VariableNode))
    usual = [n for name in names if (n := _count(definition.args[name].default_value)) is not None]
    default = max(usual, default=1 if names == ["ids"] else PAGE)
    return Pages(max(literals, default=None), variables, default)


def _literal(value: ValueNode | None) -> int | None:
    match value:
        case IntValueNode():
            return _count(int(value.value[:20]))  # a longer text is no Int and slow to parse
        case ListValueNode():
            return len(value.values)
        case _:
            return None


def defaults(operation: OperationDefinitionNode) -> dict[str, Any]:
    """Return the object counts of default values, by the names of the variables."""
    return {
        node.variable.name.value: count
        for node in operation.variable_definitions or ()
        if (count := _literal(node.default_value)) is not None
    }
