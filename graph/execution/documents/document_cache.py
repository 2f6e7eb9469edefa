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

from graph.execution.documents.argument_sizes import (
    CostVariables,
    sizes_of_default_values,
    text_lengths_of_default_values,
)
from graph.execution.documents.cached_handlers import with_cached_handlers
from graph.execution.documents.cost_limits import (
    NO_COST,
    CostEstimator,
    CostFormula,
    OperationLimits,
    SelectionMeasure,
    exceeded_limit_texts,
    object_counts_of_default_values,
)
from graph.execution.documents.literal_rule import LocatedLiteralRule
from graph.execution.documents.required_scopes import scopes_required_by_types
from graph.execution.resolver_plans import PlanCache
from mail.text.storable_text import has_nul
from models.observability import metrics
from models.users.roles import Scope

Value = TypeVar("Value")

KNOWN_RULES = tuple(
    LocatedLiteralRule if rule is ValuesOfCorrectTypeRule else rule for rule in specified_rules
)
RULES = tuple(with_cached_handlers(rule) for rule in (*KNOWN_RULES, MaybeNullValidationRule))
MAX_ERRORS = 10  # of one document
MAX_MESSAGE_LENGTH = 400  # characters; graphql-core shows whole objects in some
MAX_DOCUMENT_LENGTH = 100_000  # characters of a document
MAX_TOKENS = 5_000
MAX_COMMENTS = 1_000
MAX_CACHED_LENGTH = 32_000  # characters; longer documents are read again each time
CURSOR_FIELD = "User", "cursor"
ATOMIC_DIRECTIVE = "atomic"
NUL_ERROR = "A text must not contain the character NUL: neither mail nor every store can."
DOCUMENT_LOOKUPS = metrics.counter(
    "merganser_document_lookups",
    "Lookups in the document cache: hit; bad, known as refused; miss.",
    "result",
)
DOCUMENT_EVICTIONS = metrics.counter(
    "merganser_document_evictions", "Documents removed from the cache to make room."
)
BYTES_PER_PARSED_TOKEN = 700  # measured
BYTES_PER_COMPILED_TOKEN = 600  # measured, for each plan


class DocumentFault(NamedTuple):
    """An error of a document. Unlike a GraphQLError it has no reference to the document.

    `code` is the error code for clients.
    """

    message: str
    code: str
    locations: tuple[SourceLocation, ...] = ()
    extensions: Mapping[str, Any] = {}  # without the code

    def to_error(self) -> GraphQLError:
        """Create the GraphQL error of one response."""
        error = GraphQLError(self.message, extensions={"code": self.code, **self.extensions})
        error.locations = list(self.locations) or None
        return error


@dataclass(frozen=True, slots=True)
class PreparedDocument:
    """A parsed document with one operation and the facts that its execution needs.

    A refused document has `faults` and an empty query.
    """

    document: DocumentNode
    faults: tuple[DocumentFault, ...] = ()
    operation_type: OperationType = OperationType.QUERY
    operation_name: str | None = None
    cost_formula: CostFormula = NO_COST
    # of the variables that count
    object_counts_of_default_values: Mapping[str, Any] = field(default_factory=dict)
    sizes_of_default_values: Mapping[str, int] = field(default_factory=dict)  # in units
    text_lengths_of_default_values: Mapping[str, int] = field(default_factory=dict)
    root_fields: frozenset[str] = frozenset()
    is_introspection: bool = False
    scopes: frozenset[Scope] = frozenset()  # required by the types of its fields
    reads_user_cursor: bool = False
    plan_cache: PlanCache | None = None  # None if the document is refused
    is_atomic: bool = False  # all fields run in one transaction

    def cost_with_variables(self, variables: Mapping[str, object] | None) -> int:
        """Return the cost of the operation with these variables."""
        return self.cost_formula.total_cost(
            CostVariables(
                variables or {},
                self.object_counts_of_default_values,
                self.sizes_of_default_values,
                self.text_lengths_of_default_values,
            )
        )


class SizedLruCache(Generic[Value]):
    """A cache of the last used values with limits on their number and their bytes."""

    def __init__(self, *, max_entries: int, max_bytes: int) -> None:
        self.max_entries = max_entries
        self.max_bytes = max_bytes
        self.used_bytes = 0
        self._values: OrderedDict[Hashable, tuple[Value, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._values)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._values

    def get(self, key: Hashable) -> Value | None:
        """Return the value of `key`, or None, and mark it as last used."""
        if (entry := self._values.get(key)) is None:
            return None
        self._values.move_to_end(key)
        return entry[0]

    def pop_with_size(self, key: Hashable) -> tuple[Value, int] | None:
        """Remove `key` and return its value and size; None if it is not cached."""
        entry = self._values.pop(key, None)
        self.used_bytes -= entry[1] if entry else 0
        return entry

    def put_unless_present_or_too_large(self, key: Hashable, value: Value, *, size: int) -> None:
        """Add a value of `size` bytes and remove the least recently used values."""
        if size > self.max_bytes or key in self._values:
            return
        self._values[key] = value, size
        self.used_bytes += size
        while self.used_bytes > self.max_bytes or len(self._values) > self.max_entries:
            _, (_, evicted_size) = self._values.popitem(last=False)
            self.used_bytes -= evicted_size
            DOCUMENT_EVICTIONS.add()


class DocumentCache:
    """The cached documents of one schema.

    Refused documents and documents that were used once have separate caches, so that a flood of
    them doesn't displace documents in use.
    """

    def __init__(
        self, schema: GraphQLSchema, limits: OperationLimits, *, can_compile: bool = True
    ) -> None:
        self.schema = schema
        self.limits = limits
        self.can_compile = can_compile
        self.used_once: SizedLruCache[PreparedDocument] = SizedLruCache(
            max_entries=500, max_bytes=32 << 20
        )
        self.used_again: SizedLruCache[PreparedDocument] = SizedLruCache(
            max_entries=1_000, max_bytes=64 << 20
        )
        self.refused: SizedLruCache[PreparedDocument] = SizedLruCache(
            max_entries=200, max_bytes=1 << 20
        )

    def find_or_prepare_with_faults(
        self, text: str, operation_name: str | None
    ) -> PreparedDocument:
        """Return a prepared document with its operation, from the cache or read from the text.

        Without a name the document must have a single operation. A document that can't be run has
        faults.
        """
        key = text, operation_name
        cached = self.used_again.get(key) or self.refused.get(key)
        if cached is None and (used_once := self.used_once.pop_with_size(key)):
            cached, size = used_once
            self.used_again.put_unless_present_or_too_large(key, cached, size=size)
        DOCUMENT_LOOKUPS.add("miss" if cached is None else "bad" if cached.faults else "hit")
        if cached is None:
            cached = self._prepare_or_refuse_document(text, operation_name)
            self._cache_unless_too_long(key, cached)
        return cached

    def is_cached(self, text: str, operation_name: str | None) -> bool:
        """True if the document is cached."""
        key = text, operation_name
        return key in self.used_again or key in self.used_once or key in self.refused

    def _cache_unless_too_long(
        self, key: tuple[str, str | None], prepared: PreparedDocument
    ) -> None:
        text, name = key
        if len(text) + len(name or "") > MAX_CACHED_LENGTH:
            return
        size = len(text.encode()) + len(name or "")
        if prepared.faults:
            size += sum(len(fault.message.encode()) for fault in prepared.faults)
            self.refused.put_unless_present_or_too_large(key, prepared, size=size)
        else:
            bytes_per_token = BYTES_PER_PARSED_TOKEN + BYTES_PER_COMPILED_TOKEN * (
                prepared.plan_cache.max_plan_count if prepared.plan_cache else 0
            )
            self.used_once.put_unless_present_or_too_large(
                key, prepared, size=size + bytes_per_token * _token_count(prepared.document)
            )

    def _prepare_or_refuse_document(
        self, text: str, operation_name: str | None
    ) -> PreparedDocument:
        if len(text) > MAX_DOCUMENT_LENGTH:
            message = f"A document has at most {MAX_DOCUMENT_LENGTH} characters."
            return _refused_document(operation_name, DocumentFault(message, "TOO_LARGE"))
        try:
            document = parse(
                text,
                max_tokens=MAX_TOKENS,
                max_comments=MAX_COMMENTS,
                max_source_length=MAX_DOCUMENT_LENGTH,
            )
        except GraphQLSyntaxError as error:
            return _refused_document(
                operation_name, _fault_from_error(error, "GRAPHQL_PARSE_FAILED")
            )
        operation = _select_operation(document, operation_name)
        if isinstance(operation, DocumentFault):
            return _refused_document(operation_name, operation)
        ruler = SelectionMeasure(document)
        if limit_texts := list(exceeded_limit_texts(document, ruler, self.limits)):
            message = f"The document is too large. {'; '.join(limit_texts)}."
            return _refused_document(operation_name, DocumentFault(message, "QUERY_TOO_COMPLEX"))
        if faults := self._validation_faults(document):
            return _refused_document(operation_name, *faults)
        return PreparedDocument(
            document,
            operation_type=operation.operation,
            operation_name=operation.name.value if operation.name else None,
            cost_formula=CostEstimator(self.schema, ruler).operation_cost(operation),
            object_counts_of_default_values=object_counts_of_default_values(operation),
            sizes_of_default_values=sizes_of_default_values(operation),
            text_lengths_of_default_values=text_lengths_of_default_values(operation),
            root_fields=_root_field_names(document, operation),
            is_introspection=_has_introspection(document),
            scopes=scopes_required_by_types(self.schema, document, operation),
            reads_user_cursor=CURSOR_FIELD[1] in text and _reads_user_cursor(self.schema, document),
            plan_cache=PlanCache.from_document(
                self.schema, document, operation, can_compile=self.can_compile
            ),
            is_atomic=any(
                directive.name.value == ATOMIC_DIRECTIVE for directive in operation.directives or ()
            ),
        )

    def _validation_faults(self, document: DocumentNode) -> list[DocumentFault]:
        if has_nul(_string_literals(document)):
            return [DocumentFault(NUL_ERROR, "BAD_USER_INPUT")]
        try:
            errors = validate(self.schema, document, RULES, max_errors=MAX_ERRORS)
        except IndexError:  # graphql-core's suggestions fail at characters such as "İ"
            return [DocumentFault("Unknown name.", "GRAPHQL_VALIDATION_FAILED")]
        return [_fault_from_error(error, "GRAPHQL_VALIDATION_FAILED") for error in errors]


def _select_operation(
    document: DocumentNode, operation_name: str | None
) -> OperationDefinitionNode | DocumentFault:
    all_ = [node for node in document.definitions if isinstance(node, OperationDefinitionNode)]
    matching_nodes = [
        node
        for node in all_
        if operation_name is None or (node.name and node.name.value == operation_name)
    ]
    if matching_nodes and (
        len(matching_nodes) == 1 or operation_name is not None
    ):  # validation refuses duplicate names
        return matching_nodes[0]
    if matching_nodes:
        message = "The document has several operations: operationName must say which to run."
    elif operation_name is not None:
        message = f'Unknown operation named "{operation_name[:100]}".'
    else:
        message = "The document has no operation."
    return DocumentFault(message, "BAD_USER_INPUT")


def _fault_from_error(error: GraphQLError, code: str) -> DocumentFault:
    message = error.message
    if len(message) > MAX_MESSAGE_LENGTH:
        message = f"{message[:MAX_MESSAGE_LENGTH]}…"
    path = (error.extensions or {}).get("path")
    extensions = {"path": path} if path else {}
    return DocumentFault(message, code, tuple(error.locations or ()), extensions)


def refused_document(operation_name: str | None, error: GraphQLError) -> PreparedDocument:
    """Return a document that is refused with an error before it is read."""
    extensions = dict(error.extensions or {})
    return _refused_document(
        operation_name,
        DocumentFault(error.message, str(extensions.pop("code")), extensions=extensions),
    )


def _refused_document(operation_name: str | None, *faults: DocumentFault) -> PreparedDocument:
    """Return an empty query with faults: Strawberry needs a document before the check."""
    empty = OperationDefinitionNode(
        operation=OperationType.QUERY,
        name=None if operation_name is None else NameNode(value=operation_name),
        selection_set=SelectionSetNode(selections=()),
    )
    return PreparedDocument(DocumentNode(definitions=(empty,)), faults)


def _token_count(document: DocumentNode) -> int:
    token = document.loc.start_token if document.loc else None
    count = 0
    while token is not None:
        count, token = count + 1, token.next
    return count


def _root_field_names(document: DocumentNode, operation: OperationDefinitionNode) -> frozenset[str]:
    """Return the names of an operation's root fields, including those in fragments."""
    fragments = {
        node.name.value: node.selection_set
        for node in document.definitions
        if isinstance(node, FragmentDefinitionNode)
    }
    names: set[str] = set()
    seen_fragments: set[str] = set()
    waiting = [operation.selection_set]
    while waiting:
        for node in waiting.pop().selections:
            if isinstance(node, FieldNode):
                names.add(node.name.value)
            elif isinstance(node, InlineFragmentNode):
                waiting.append(node.selection_set)
            elif isinstance(node, FragmentSpreadNode) and node.name.value not in seen_fragments:
                seen_fragments.add(node.name.value)
                waiting.append(fragments[node.name.value])
    return frozenset(names - {"__typename"})


def _has_introspection(document: DocumentNode) -> bool:
    finder = _IntrospectionFinder()
    visit(document, finder)
    return finder.is_found


def _reads_user_cursor(schema: GraphQLSchema, document: DocumentNode) -> bool:
    types, finder = TypeInfo(schema), _CursorFieldFinder()
    finder.types = types
    visit(document, TypeInfoVisitor(types, finder))
    return finder.is_found


def _string_literals(document: DocumentNode) -> list[object]:
    finder = _StringLiteralFinder()
    visit(document, finder)
    return finder.texts


class _StringLiteralFinder(Visitor):
    def __init__(self) -> None:
        super().__init__()
        self.texts: list[object] = []

    def enter_string_value(self, node: StringValueNode, *_: Any) -> None:
        self.texts.append(node.value)


class _CursorFieldFinder(Visitor):
    types: TypeInfo
    is_found = False

    def enter_field(self, node: FieldNode, *_: Any) -> None:
        kind = self.types.get_parent_type()
        self.is_found |= kind is not None and (kind.name, node.name.value) == CURSOR_FIELD


class _IntrospectionFinder(Visitor):
    is_found = False

    def enter_field(self, node: FieldNode, *_: Any) -> Any:
        if node.name.value in ("__schema", "__type"):
            self.is_found = True
            return BREAK
        return None
