"""What one operation may ask for: its size, and its price."""

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

CEILING = 10**12  # counts stop here: 800 fragments that double make a number of 240 digits
LEVELS = 80  # nested selections and spreads that we follow, far more than a depth of 16 needs
PAGE = 20  # objects of a page whose size is not said
SIZES = ("first", "last", "ids")  # arguments that say how many objects come
WHOLE_SCHEMA = 3000  # price of a full introspection, and once more for each alias in it
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
    """The most that one operation may be."""

    depth: int = 16  # fields inside fields
    aliases: int = 60
    fields: int = 1000  # fragments unfolded, `__typename` not counted
    root_fields: int = 50
    directives: int = 100
    comparisons: int = 8_000  # of fields and fragments that stand beside each other: see overlaps
    members: int = 500  # of objects that are written into the document: errors show them whole
    cost: int = 10_000  # for everybody
    cost_of_admins: int = 100_000
    deadline: float = 10.0  # seconds

    def budget(self, role: Role) -> int:
        """The highest price that somebody of this role may pay for one operation."""
        return self.cost_of_admins if role.includes(Role.DOMAIN_ADMIN) else self.cost


class Size(NamedTuple):
    """Of a selection with all its fragments unfolded. `top` are the fields of its first level."""

    depth: int = 0
    fields: int = 0
    top: int = 0
    aliases: int = 0
    directives: int = 0

    def beside(self, other: "Size") -> "Size":
        """Both in one selection."""
        sums = (min(a + b, CEILING) for a, b in zip(self[1:], other[1:], strict=True))
        return Size(max(self.depth, other.depth), *sums)


TOO_DEEP = Size(depth=CEILING)


class Ruler:
    """Measures the selections of one document; each fragment once, however often it is spread."""

    def __init__(self, document: DocumentNode) -> None:
        self.fragments = {
            node.name.value: node
            for node in document.definitions
            if isinstance(node, FragmentDefinitionNode)
        }
        self._memo: dict[str, Size] = {}

    def measure(self, selection: SelectionSetNode | None, level: int = 0) -> Size:
        """The size of a selection. Unknown fragments count nothing, cycles are cut."""
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
        free = name.startswith("__") and below.depth < CEILING  # graphql-core bounds these itself
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
    """What is too large in a document, in words. Nothing is yielded where all is well.

    All definitions count, whichever is to run: validation reads them all.
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
    """How many objects a field brings: known, or said by variables."""

    known: int | None  # the largest literal
    variables: tuple[str, ...]
    default: int

    def count(self, values: Mapping[str, object]) -> int:
        """The number, for these variables."""
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
    """`fixed`, and for each of `parts` so many times `each` and the price below it."""

    fixed: int = 0
    parts: tuple[tuple[Pages, int, "Price"], ...] = ()

    def total(self, values: Mapping[str, object], memo: dict[int, int] | None = None) -> int:
        """The price with these variables. Each shared part is worked out once."""
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
        """So many of it, and `each` besides for every one."""
        if pages.variables or self.parts:
            return Price(0, ((pages, each, self),))
        return Price(min(pages.count({}) * (each + self.fixed), CEILING))

    def and_(self, other: "Price") -> "Price":
        """Both. Many parts become one: fragments that double would double them."""
        if len(other.parts) > 1:
            return Price(self.fixed, (*self.parts, (ONCE, 0, other)))
        return Price(min(self.fixed + other.fixed, CEILING), self.parts + other.parts)


ONCE = Pages(1, (), 1)
FREE = Price()


class Tariff(NamedTuple):
    """Of a selection: what is paid once, and what for each object of a connection's page."""

    once: Price = FREE
    each: Price = FREE

    def and_(self, other: "Tariff") -> "Tariff":
        """Both in one selection."""
        return Tariff(self.once.and_(other.once), self.each.and_(other.each))

    @property
    def whole(self) -> Price:
        return self.once.and_(self.each)


class Clerk:
    """Prices the operations of one valid document; each fragment once."""

    def __init__(self, schema: GraphQLSchema, ruler: Ruler) -> None:
        self.schema = schema
        self.ruler = ruler
        self._memo: dict[str, Tariff] = {}

    def price(self, operation: OperationDefinitionNode) -> Price:
        """What an operation costs, as a formula of its variables."""
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
    """The `@cost` of a field; None where it has none."""
    field = origin(definition)
    found = (d for d in getattr(field, "directives", ()) if isinstance(d, Cost))
    return next(found, None)


def _pages(node: FieldNode, definition: GraphQLField, kind: GraphQLNamedType) -> Pages | None:
    """How many objects come; None where there is one, or nobody says."""
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
            return _count(int(value.value[:20]))  # a longer one is no Int, and slow to read
        case ListValueNode():
            return len(value.values)
        case _:
            return None


def defaults(operation: OperationDefinitionNode) -> dict[str, Any]:
    """What the variables of an operation count where the request leaves them out."""
    return {
        node.variable.name.value: count
        for node in operation.variable_definitions or ()
        if (count := _literal(node.default_value)) is not None
    }
