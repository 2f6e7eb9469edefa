"""The cache of documents that are parsed, validated and given a cost once."""

from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Generic, NamedTuple, TypeVar

from graphql import (
    DocumentNode,
    FieldNode,
    FragmentDefinitionNode,
    FragmentSpreadNode,
    GraphQLError,
    GraphQLSchema,
    GraphQLSyntaxError,
    InlineFragmentNode,
    NameNode,
    OperationDefinitionNode,
    OperationType,
    SelectionSetNode,
    SourceLocation,
    StringValueNode,
    TypeInfo,
    TypeInfoVisitor,
    ValuesOfCorrectTypeRule,
    parse,
    specified_rules,
)
from graphql.language import BREAK, Visitor, visit
from graphql.validation import validate
from strawberry.schema.validation_rules.maybe_null import MaybeNullValidationRule
from strawberry.schema.validation_rules.one_of import OneOfInputValidationRule

from graph.execution.documents.cost_limits import (
    FREE,
    Clerk,
    Limits,
    Price,
    Ruler,
    defaults,
    excesses,
)
from graph.execution.documents.literal_rule import LiteralRule
from graph.execution.documents.required_scopes import needed
from graph.execution.resolver_plans import Book
from models.observability import metrics
from models.users.roles import Scope

Value = TypeVar("Value")

KNOWN_RULES = tuple(
    LiteralRule if rule is ValuesOfCorrectTypeRule else rule for rule in specified_rules
)
RULES = (*KNOWN_RULES, MaybeNullValidationRule, OneOfInputValidationRule)
ERRORS_MAX = 10  # of one document
MESSAGE_MAX = 400  # characters; graphql-core shows whole objects in some
TEXT_MAX = 100_000  # characters of a document
TOKENS_MAX = 5_000
COMMENTS_MAX = 1_000
KEPT_MAX = 32_000  # characters; longer documents are read again each time
PLACE = "User", "cursor"
ATOMIC = "atomic"
NO_NUL = "A text must not hold the character NUL: neither mail nor every store can."
LOOKUPS = metrics.counter(
    "merganser_document_lookups",
    "Looks into the cache of documents: hit; bad, known as refused; miss, read anew.",
    "result",
)
EVICTIONS = metrics.counter("merganser_document_evictions", "Documents that made room for others.")
TOKEN = 700  # measured
PLAN = 600  # measured, for each plan


class Fault(NamedTuple):
    """An error of a document. Unlike a GraphQLError it has no reference to the document.

    `code` is the error code for clients.
    """

    message: str
    code: str
    locations: tuple[SourceLocation, ...] = ()
    more: Mapping[str, Any] = {}  # without the code

    def error(self) -> GraphQLError:
        """Create the GraphQL error of one response."""
        made = GraphQLError(self.message, extensions={"code": self.code, **self.more})
        made.locations = list(self.locations) or None
        return made


@dataclass(frozen=True, slots=True)
class Known:
    """A parsed document with one operation and the facts that its execution needs.

    A refused document has `faults` and an empty query.
    """

    document: DocumentNode
    faults: tuple[Fault, ...] = ()
    kind: OperationType = OperationType.QUERY
    name: str | None = None
    price: Price = FREE
    defaults: Mapping[str, Any] = field(default_factory=dict)  # of the variables that count
    fields: frozenset[str] = frozenset()
    introspects: bool = False
    scopes: frozenset[Scope] = frozenset()  # required by the types of its fields
    placed: bool = False
    book: Book | None = None  # None if the document is refused
    atomic: bool = False  # all fields run in one transaction

    def cost(self, variables: Mapping[str, object] | None) -> int:
        """Return the cost of the operation with these variables."""
        return self.price.total({**self.defaults, **(variables or {})})


class Shelf(Generic[Value]):
    """A cache of the last used values with limits on their number and their bytes."""

    def __init__(self, *, entries: int, room: int) -> None:
        self.entries = entries
        self.room = room
        self.taken = 0
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def get(self, key: Hashable) -> Value | None:
        """Return the value of `key`, or None, and mark it as last used."""
        if (found := self._values.get(key)) is None:
            return None
        self._values.move_to_end(key)
        return found[0]

    def take(self, key: Hashable) -> tuple[Value, int] | None:
        """Remove `key` and return its value and size; None if it is not cached."""
        found = self._values.pop(key, None)
        self.taken -= found[1] if found else 0
        return found

    def put(self, key: Hashable, value: Value, *, size: int) -> None:
        """Add a value of `size` bytes and remove the least recently used values."""
        if size > self.room or key in self._values:
            return
        self._values[key] = value, size
        self.taken += size
        while self.taken > self.room or len(self._values) > self.entries:
            _, (_, gone) = self._values.popitem(last=False)
            self.taken -= gone
            EVICTIONS.add()


class Documents:
    """The cached documents of one schema.

    Refused documents and documents that were used once have separate caches, so that a flood of
    them doesn't displace documents in use.
    """

    def __init__(self, schema: GraphQLSchema, limits: Limits, *, compiles: bool = True) -> None:
        self.schema = schema
        self.limits = limits
        self.compiles = compiles
        self.once: Shelf[Known] = Shelf(entries=500, room=32 << 20)
        self.good: Shelf[Known] = Shelf(entries=1_000, room=64 << 20)
        self.bad: Shelf[Known] = Shelf(entries=200, room=1 << 20)

    def find(self, text: str, name: str | None) -> Known:
        """Return a prepared document with its operation, from the cache or read from the text.

        Without a name the document must have a single operation. A document that can't be run has
        faults.
        """
        key = text, name
        known = self.good.get(key) or self.bad.get(key)
        if known is None and (again := self.once.take(key)):
            known, size = again
            self.good.put(key, known, size=size)
        LOOKUPS.add("miss" if known is None else "bad" if known.faults else "hit")
        if known is None:
            known = self._read(text, name)
            self._keep(key, known)
        return known

    def has(self, text: str, name: str | None) -> bool:
        """True if the document is cached."""
        key = text, name
        return key in self.good or key in self.once or key in self.bad

    def _keep(self, key: tuple[str, str | None], known: Known) -> None:
        text, name = key
        if len(text) + len(name or "") > KEPT_MAX:
            return
        size = len(text.encode()) + len(name or "")
        if known.faults:
            size += sum(len(fault.message.encode()) for fault in known.faults)
            self.bad.put(key, known, size=size)
        else:
            each = TOKEN + PLAN * (known.book.outcomes if known.book else 0)
            self.once.put(key, known, size=size + each * _tokens(known.document))

    def _read(self, text: str, name: str | None) -> Known:
        if len(text) > TEXT_MAX:
            message = f"A document has at most {TEXT_MAX} characters."
            return _refused(name, Fault(message, "TOO_LARGE"))
        try:
            document = parse(
                text, max_tokens=TOKENS_MAX, max_comments=COMMENTS_MAX, max_source_length=TEXT_MAX
            )
        except GraphQLSyntaxError as error:
            return _refused(name, _fault(error, "GRAPHQL_PARSE_FAILED"))
        operation = _operation(document, name)
        if isinstance(operation, Fault):
            return _refused(name, operation)
        ruler = Ruler(document)
        if found := list(excesses(document, ruler, self.limits)):
            message = f"The document is too large. {'; '.join(found)}."
            return _refused(name, Fault(message, "QUERY_TOO_COMPLEX"))
        if faults := self._faults(document):
            return _refused(name, *faults)
        return Known(
            document,
            kind=operation.operation,
            name=operation.name.value if operation.name else None,
            price=Clerk(self.schema, ruler).price(operation),
            defaults=defaults(operation),
            fields=_fields(document, operation),
            introspects=_introspects(document),
            scopes=needed(self.schema, document, operation),
            placed=PLACE[1] in text and _placed(self.schema, document),
            book=Book.of(self.schema, document, operation, compiles=self.compiles),
            atomic=any(each.name.value == ATOMIC for each in operation.directives or ()),
        )

    def _faults(self, document: DocumentNode) -> list[Fault]:
        if has_nul(_literals(document)):
            return [Fault(NO_NUL, "BAD_USER_INPUT")]
        try:
            errors = validate(self.schema, document, RULES, max_errors=ERRORS_MAX)
        except IndexError:  # graphql-core's suggestions fail at letters such as "İ"
            return [Fault("An unknown name.", "GRAPHQL_VALIDATION_FAILED")]
        return [_fault(error, "GRAPHQL_VALIDATION_FAILED") for error in errors]


def _operation(document: DocumentNode, name: str | None) -> OperationDefinitionNode | Fault:
    all_ = [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]
    named = [node for node in all_ if name is None or (node.name and node.name.value == name)]
    if named and (len(named) == 1 or name is not None):  # validation refuses duplicate names
        return named[0]
    if named:
        message = "The document has several operations: operationName must say which to run."
    elif name is not None:
        message = f'Unknown operation named "{name[:100]}".'
    else:
        message = "The document has no operation."
    return Fault(message, "BAD_USER_INPUT")


def _fault(error: GraphQLError, code: str) -> Fault:
    message = error.message
    if len(message) > MESSAGE_MAX:
        message = f"{message[:MESSAGE_MAX]}…"
    place = (error.extensions or {}).get("path")
    more = {"path": place} if place else {}
    return Fault(message, code, tuple(error.locations or ()), more)


def refused(name: str | None, error: GraphQLError) -> Known:
    """Return a document that is refused with an error before it is read."""
    extensions = dict(error.extensions or {})
    return _refused(name, Fault(error.message, str(extensions.pop("code")), more=extensions))


def _refused(name: str | None, *faults: Fault) -> Known:
    """Return an empty query with faults: Strawberry needs a document before the check."""
    empty = OperationDefinitionNode(
        operation=OperationType.QUERY,
        name=None if name is None else NameNode(value=name),
        selection_set=SelectionSetNode(selections=()),
    )
    return Known(DocumentNode(definitions=(empty,)), faults)


def _tokens(document: DocumentNode) -> int:
    token = document.loc.start_token if document.loc else None
    count = 0
    while token is not None:
        count, token = count + 1, token.next
    return count


def _fields(document: DocumentNode, operation: OperationDefinitionNode) -> frozenset[str]:
    """Return the names of an operation's root fields, including those in fragments."""
    fragments = {
        node.name.value: node.selection_set
        for node in document.definitions
        if isinstance(node, FragmentDefinitionNode)
    }
    found: set[str] = set()
    seen: set[str] = set()
    waiting = [operation.selection_set]
    while waiting:
        for node in waiting.pop().selections:
            if isinstance(node, FieldNode):
                found.add(node.name.value)
            elif isinstance(node, InlineFragmentNode):
                waiting.append(node.selection_set)
            elif isinstance(node, FragmentSpreadNode) and node.name.value not in seen:
                seen.add(node.name.value)
                waiting.append(fragments[node.name.value])
    return frozenset(found - {"__typename"})


def _introspects(document: DocumentNode) -> bool:
    found = _Introspection()
    visit(document, found)
    return found.seen


def _placed(schema: GraphQLSchema, document: DocumentNode) -> bool:
    types, found = TypeInfo(schema), _Place()
    found.types = types
    visit(document, TypeInfoVisitor(types, found))
    return found.seen


def has_nul(value: object) -> bool:
    """True if a text or key in this value contains the character NUL."""
    waiting = [value]
    while waiting:
        match waiting.pop():
            case str() as text if "\0" in text:
                return True
            case dict() as members:
                waiting += members
                waiting += members.values()
            case list() as items if set(map(type, items)) == {str}:
                waiting.append("".join(items))
            case list() as items:
                waiting += items
    return False


def _literals(document: DocumentNode) -> list[object]:
    found = _Texts()
    visit(document, found)
    return found.texts


class _Texts(Visitor):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[object] = []

    def enter_string_value(self, node: StringValueNode, *_: Any) -> None:
        self.texts.append(node.value)


class _Place(Visitor):
    types: TypeInfo
    seen = False

    def enter_field(self, node: FieldNode, *_: Any) -> None:
        kind = self.types.get_parent_type()
        self.seen |= kind is not None and (kind.name, node.name.value) == PLACE


class _Introspection(Visitor):
    seen = False

    def enter_field(self, node: FieldNode, *_: Any) -> Any:
        if node.name.value in ("__schema", "__type"):
            self.seen = True
            return BREAK
        return None
