"""Limits on the size and the cost of one operation."""

from collections.abc import Iterator
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

from graph.execution.documents.argument_sizes import ArgumentsSize, CostVariables, arguments_size
from graph.execution.documents.overlap_limits import OverlapCounter
from graph.execution.strawberry_definitions import strawberry_definition
from models.users.roles import Role

MAX_COUNT = 10**12  # 800 fragments that double would make a number of 240 digits
MAX_FOLLOWED_LEVELS = 80  # nested selections and spreads, far more than a depth of 16 needs
DEFAULT_PAGE_SIZE = 20
SIZE_ARGUMENTS = ("first", "last", "ids")
MUTATION_COST = 25  # of a mutation without a cost of its own, since each runs a transaction
INTROSPECTION_COST = 3000  # charged again for each alias in it
TYPE_INTROSPECTION_COST = 20


@strawberry.schema_directive(
    locations=[Location.FIELD_DEFINITION],
    name="cost",
    description="Cost of a field in the cost limit.",
)
class Cost:
    default_page_size: int | None = strawberry.directive_field(
        name="defaultPageSize", default=strawberry.UNSET
    )
    per_item: bool = strawberry.directive_field(name="perItem", default=False)
    weight: int = strawberry.directive_field(name="weight", default=1)


@dataclass(frozen=True, slots=True)
class OperationLimits:
    """The highest values of one document and operation."""

    depth: int = 16  # nested fields
    aliases: int = 60
    fields: int = 1000  # with fragments expanded, without `__typename`
    root_fields: int = 50
    directives: int = 100
    comparisons: int = 8_000  # pairs of fields and fragments: see overlap_limits
    members: int = 500  # of literal objects in the document: errors show them in full
    max_cost: int = 10_000
    max_cost_of_admins: int = 100_000
    deadline: float = 10.0  # seconds
    # seconds; its cost limits its work, which a retry would do again
    introspection_deadline: float = 60.0

    def max_cost_of_role(self, role: Role) -> int:
        """Return the highest cost of one operation for a role."""
        return self.max_cost_of_admins if role.includes(Role.DOMAIN_ADMIN) else self.max_cost


class SelectionSize(NamedTuple):
    """The size of a selection set with its fragments expanded.

    `root_fields` is the number of fields on the first level.
    """

    depth: int = 0
    fields: int = 0
    root_fields: int = 0
    aliases: int = 0
    directives: int = 0

    def combined_with(self, other: "SelectionSize") -> "SelectionSize":
        """Return the size of both selections in one selection set."""
        sums = (min(a + b, MAX_COUNT) for a, b in zip(self[1:], other[1:], strict=True))
        return SelectionSize(max(self.depth, other.depth), *sums)


TOO_DEEP_SIZE = SelectionSize(depth=MAX_COUNT)


class SelectionMeasure:
    """The measurement of the selections of one document. Each fragment is measured once."""

    def __init__(self, document: DocumentNode) -> None:
        self.fragments = {
            node.name.value: node
            for node in document.definitions
            if isinstance(node, FragmentDefinitionNode)
        }
        self._size_by_fragment: dict[str, SelectionSize] = {}

    def selection_size(self, selection: SelectionSetNode | None, level: int = 0) -> SelectionSize:
        """Return the size of a selection set. Unknown fragments and cycles count nothing."""
        if selection is None:
            return SelectionSize()
        if level > MAX_FOLLOWED_LEVELS:
            return TOO_DEEP_SIZE
        total = SelectionSize()
        for node in selection.selections:
            total = total.combined_with(self._node_size(node, level + 1))
        return total

    def _node_size(self, node: SelectionNode, level: int) -> SelectionSize:
        bare = SelectionSize(directives=len(node.directives or ()))
        match node:
            case FieldNode():
                return bare.combined_with(self._field_size(node, level))
            case FragmentSpreadNode():
                return bare.combined_with(self._fragment_size(node.name.value, level))
            case InlineFragmentNode():
                return bare.combined_with(self.selection_size(node.selection_set, level))
            case _:
                return bare

    def _field_size(self, node: FieldNode, level: int) -> SelectionSize:
        name, below = node.name.value, self.selection_size(node.selection_set, level)
        is_free = name.startswith("__") and below.depth < MAX_COUNT  # limited by graphql-core
        return below._replace(
            depth=0 if is_free else below.depth + 1,
            fields=below.fields + (name != "__typename"),
            root_fields=1,
            aliases=below.aliases + (node.alias is not None),
        )

    def _fragment_size(self, name: str, level: int) -> SelectionSize:
        if name not in self._size_by_fragment:
            self._size_by_fragment[name] = SelectionSize()  # before descending: a cycle ends here
            if node := self.fragments.get(name):
                self._size_by_fragment[name] = self.selection_size(node.selection_set, level)
        return self._size_by_fragment[name]


def _count_object_members(document: DocumentNode) -> int:
    counter = _ObjectMemberCounter()
    visit(document, counter)
    return counter.count


class _ObjectMemberCounter(Visitor):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def enter_object_field(self, *_: Any) -> None:
        self.count += 1


def exceeded_limit_texts(
    document: DocumentNode, measure: SelectionMeasure, limits: OperationLimits
) -> Iterator[str]:
    """Yield a text for each limit that a document exceeds.

    All definitions count, since validation reads them all.
    """
    total = SelectionSize()
    for node in document.definitions:
        if isinstance(node, OperationDefinitionNode | FragmentDefinitionNode):
            size = measure.selection_size(node.selection_set)
            own_size = SelectionSize(directives=len(node.directives or ()))
            root = isinstance(node, OperationDefinitionNode)
            total = SelectionSize(
                *map(
                    max,
                    total,
                    size.combined_with(own_size)._replace(
                        root_fields=size.root_fields if root else 0
                    ),
                )
            )
    for limit_name, count, limit in (
        ("levels", total.depth, limits.depth),
        ("aliases", total.aliases, limits.aliases),
        ("fields", total.fields, limits.fields),
        ("root fields", total.root_fields, limits.root_fields),
        ("directives", total.directives, limits.directives),
        ("members of objects", _count_object_members(document), limits.members),
    ):
        if count > limit:
            yield f"The document exceeds the limit {limit_name}: at most {limit} are allowed."
    if OverlapCounter(measure.fragments, limits.comparisons).exceeds_limit(document):
        yield "Too many fields and fragments in one selection set."


@dataclass(frozen=True, slots=True)
class PageSize:
    """The number of objects that a field returns, given by literals or variables."""

    largest_literal: int | None
    variables: tuple[str, ...]
    default: int

    def object_count(self, variables: CostVariables) -> int:
        """Return the number of objects with these variables."""
        counts = [] if self.largest_literal is None else [self.largest_literal]
        counts += [
            n
            for name in self.variables
            if (n := _object_count_of_argument(variables.count_value(name))) is not None
        ]
        return max(counts, default=self.default)


def _object_count_of_argument(value: object) -> int | None:
    match value:
        case bool():
            return None
        case int() | float():
            return int(min(max(value, 0), MAX_COUNT))
        case list():
            return len(value)
        case _:
            return None


@dataclass(frozen=True, slots=True, eq=False)
class CostFormula:
    """The cost of a selection as a formula of the variables.

    It is `fixed_cost`, and for each of `parts` the number of objects times the sum of the cost
    per object and the cost of its selection.
    """

    fixed_cost: int = 0
    parts: tuple["CostPart", ...] = ()

    def total_cost(
        self, variables: CostVariables, totals_by_id: dict[int, int] | None = None
    ) -> int:
        """Return the cost with these variables. Each shared part is computed once."""
        if not self.parts:
            return self.fixed_cost
        totals_by_id = {} if totals_by_id is None else totals_by_id
        if id(self) not in totals_by_id:
            sums = (
                part.page_size.object_count(variables)
                * (part.cost_per_object + part.formula.total_cost(variables, totals_by_id))
                for part in self.parts
            )
            totals_by_id[id(self)] = min(self.fixed_cost + sum(sums), MAX_COUNT)
        return totals_by_id[id(self)]

    def multiplied_by(self, page_size: PageSize, cost_per_object: int = 0) -> "CostFormula":
        """Return the cost of a page of objects, each with this cost and a cost per object."""
        if page_size.variables or self.parts:
            return CostFormula(0, (CostPart(page_size, cost_per_object, self),))
        return CostFormula(
            min(
                page_size.object_count(NO_VARIABLES) * (cost_per_object + self.fixed_cost),
                MAX_COUNT,
            )
        )

    def plus(self, other: "CostFormula") -> "CostFormula":
        """Return the sum of both costs.

        Several parts become one part, since nested fragments would double their number.
        """
        if len(other.parts) > 1:
            return CostFormula(self.fixed_cost, (*self.parts, CostPart(ONE_OBJECT, 0, other)))
        return CostFormula(
            min(self.fixed_cost + other.fixed_cost, MAX_COUNT), self.parts + other.parts
        )


class CostPart(NamedTuple):
    """The cost of a page: a number of objects, each with this cost and that of a selection.

    The size of a field's arguments is a number of points instead of objects.
    """

    page_size: PageSize | ArgumentsSize
    cost_per_object: int
    formula: CostFormula


ONE_OBJECT = PageSize(1, (), 1)
NO_COST = CostFormula()
NO_VARIABLES = CostVariables({})


class SelectionCost(NamedTuple):
    """The cost of a selection: charged once, and charged per object of a connection's page."""

    cost_once: CostFormula = NO_COST
    cost_per_item: CostFormula = NO_COST

    def plus(self, other: "SelectionCost") -> "SelectionCost":
        """Return the cost of both selections in one selection set."""
        return SelectionCost(
            self.cost_once.plus(other.cost_once), self.cost_per_item.plus(other.cost_per_item)
        )

    @property
    def cost_of_one_page_item(self) -> CostFormula:
        return self.cost_once.plus(self.cost_per_item)


class CostEstimator:
    """The computation of the cost of a valid document's operations. Each fragment counts once."""

    def __init__(self, schema: GraphQLSchema, measure: SelectionMeasure) -> None:
        self.schema = schema
        self.measure = measure
        self._cost_by_fragment: dict[str, SelectionCost] = {}

    def operation_cost(self, operation: OperationDefinitionNode) -> CostFormula:
        """Return the cost of an operation as a formula of its variables."""
        root = self.schema.get_root_type(operation.operation)
        return self._selection_cost(operation.selection_set, root).cost_of_one_page_item

    def _selection_cost(
        self, selection: SelectionSetNode | None, parent: GraphQLNamedType | None
    ) -> SelectionCost:
        total = SelectionCost()
        for node in selection.selections if selection else ():
            total = total.plus(self._node_cost(node, parent))
        return total

    def _node_cost(self, node: SelectionNode, parent: GraphQLNamedType | None) -> SelectionCost:
        match node:
            case FieldNode() if node.name.value.startswith("__"):
                return SelectionCost(self._introspection_cost(node))
            case FieldNode():
                price = self._field_cost(node, parent)
                wrapped = _is_connection(parent) and node.name.value in ("edges", "nodes")
                return (
                    SelectionCost(cost_per_item=price)
                    if wrapped
                    else SelectionCost(cost_once=price)
                )
            case FragmentSpreadNode():
                return self._fragment_cost(node.name.value)
            case InlineFragmentNode():
                condition = node.type_condition
                inner = self.schema.get_type(condition.name.value) if condition else parent
                return self._selection_cost(node.selection_set, inner)
            case _:
                return SelectionCost()

    def _fragment_cost(self, name: str) -> SelectionCost:
        if name not in self._cost_by_fragment:
            fragment = self.measure.fragments[name]
            parent = self.schema.get_type(fragment.type_condition.name.value)
            self._cost_by_fragment[name] = self._selection_cost(fragment.selection_set, parent)
        return self._cost_by_fragment[name]

    def _introspection_cost(self, node: FieldNode) -> CostFormula:
        weight = {"__schema": INTROSPECTION_COST, "__type": TYPE_INTROSPECTION_COST}.get(
            node.name.value, 0
        )
        aliases = self.measure.selection_size(node.selection_set).aliases
        return CostFormula(weight * (1 + aliases))

    def _field_cost(self, node: FieldNode, parent: GraphQLNamedType | None) -> CostFormula:
        definition: GraphQLField = getattr(parent, "fields", {})[node.name.value]
        price = self._selected_objects_cost(node, definition, parent)
        return price.plus(_arguments_cost(node, definition)) if node.arguments else price

    def _selected_objects_cost(
        self, node: FieldNode, definition: GraphQLField, parent: GraphQLNamedType | None
    ) -> CostFormula:
        """Return the cost of a field without the size of its arguments."""
        name: str = node.name.value
        kind = get_named_type(definition.type)
        below = self._selection_cost(node.selection_set, kind)
        envelope = _is_connection(parent) and name in ("edges", "pageInfo")
        cost = cost_directive_or_none(definition)
        weight = int(is_composite_type(kind) and not envelope)
        if cost:
            weight = cost.weight
        elif parent is not None and parent is self.schema.mutation_type:
            weight = MUTATION_COST
        item_cost = weight if cost and cost.per_item else 0
        pages = _page_size(node, definition, kind)
        if pages is None:
            return CostFormula(weight).plus(below.cost_of_one_page_item)
        price = below.cost_per_item.multiplied_by(pages, item_cost).plus(below.cost_once)
        if not _is_connection(kind):
            price = below.cost_of_one_page_item.multiplied_by(pages, item_cost)
        return price if item_cost else CostFormula(weight).plus(price)


def _arguments_cost(node: FieldNode, definition: GraphQLField) -> CostFormula:
    """Return the cost of the size of a field's arguments, which is charged for each use."""
    size = arguments_size(node, definition)
    if size.variables:
        return CostFormula(0, (CostPart(size, 1, NO_COST),))
    return CostFormula(size.object_count(NO_VARIABLES))


def _is_connection(named_type: GraphQLNamedType | None) -> bool:
    return named_type is not None and named_type.name.endswith("Connection")


def cost_directive_or_none(definition: GraphQLField) -> Cost | None:
    """Return the `@cost` directive of a field; None if it has none."""
    field = strawberry_definition(definition)
    costs = (d for d in getattr(field, "directives", ()) if isinstance(d, Cost))
    return next(costs, None)


def _page_size(
    node: FieldNode, definition: GraphQLField, named_type: GraphQLNamedType
) -> PageSize | None:
    """Return the number of objects of a field; None if it isn't a list with a size."""
    names = [name for name in SIZE_ARGUMENTS if name in definition.args]
    if not names and not _is_connection(named_type):
        return None
    argument_values = {a.name.value: a.value for a in node.arguments or () if a.name.value in names}
    literals = [
        n for value in argument_values.values() if (n := _count_of_literal(value)) is not None
    ]
    variables = tuple(v.name.value for v in argument_values.values() if isinstance(v, VariableNode))
    default_counts = [
        n
        for name in names
        if (n := _object_count_of_argument(definition.args[name].default_value)) is not None
    ]
    cost = cost_directive_or_none(definition)
    page_size = (cost.default_page_size if cost else None) or DEFAULT_PAGE_SIZE
    default = max(default_counts, default=1 if names == ["ids"] else page_size)
    return PageSize(max(literals, default=None), variables, default)


def _count_of_literal(value: ValueNode | None) -> int | None:
    match value:
        case IntValueNode():
            # a longer text is no Int and slow to parse
            return _object_count_of_argument(int(value.value[:20]))
        case ListValueNode():
            return len(value.values)
        case _:
            return None


def object_counts_of_default_values(operation: OperationDefinitionNode) -> dict[str, int]:
    """Return the object counts of default values, by the names of the variables."""
    return {
        node.variable.name.value: count
        for node in operation.variable_definitions or ()
        if (count := _count_of_literal(node.default_value)) is not None
    }
