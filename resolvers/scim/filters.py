"""SCIM filters as SQL (RFC 7644, section 3.4.2.2)."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from scim2_models import InvalidFilterException, ScimFilter
from scim2_models.path import (
    AttrPath,
    Comparison,
    FilterNode,
    LogicalExpr,
    LogicalOperator,
    Not,
    Present,
    ValuePath,
)
from sqlalchemy import ColumnElement, and_, false, not_, or_

from resolvers.scim.filter_attributes import (
    AbsentAttribute,
    EntryListAttribute,
    FilterAccess,
    FilterAttribute,
    FilterAttributes,
)

MAX_FILTER_BYTES = 8 << 10
MAX_DEPTH = 32  # brackets in each other
STRING_LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"')
MAX_COMPARISONS = 30  # of one filter: the databases limit the size of conditions


@dataclass(frozen=True, slots=True)
class FilterCondition:
    """The rows that match a filter as SQL, and what the database reads to find them."""

    sql: ColumnElement[bool]
    access: FilterAccess


def filter_condition(text: str, attributes: FilterAttributes) -> FilterCondition:
    """Return the condition of a filter.

    Raises InvalidFilterException if the filter is malformed, too long or nested too deeply, or if
    an attribute can't be compared in this way.
    """
    if len(text.encode(errors="surrogatepass")) > MAX_FILTER_BYTES:
        raise InvalidFilterException(detail=f"A filter has at most {MAX_FILTER_BYTES} bytes.")
    if bracket_depth(text) > MAX_DEPTH:
        raise InvalidFilterException(detail=f"A filter is nested at most {MAX_DEPTH} deep.")
    root = ScimFilter(text).ast
    if count_comparisons(root) > MAX_COMPARISONS:
        raise InvalidFilterException(detail=f"A filter has at most {MAX_COMPARISONS} comparisons.")
    translation = _FilterTranslation(attributes)
    return FilterCondition(translation.condition(root), translation.access(root))


def bracket_depth(text: str) -> int:
    """Return how deep the brackets of a filter are nested, apart from those in texts."""
    depth = deepest = 0
    for character in STRING_LITERAL.sub("", text):
        if character in "([":
            depth += 1
            deepest = max(deepest, depth)
        elif character in ")]":
            depth -= 1
    return deepest


def count_comparisons(node: FilterNode) -> int:
    """Return the number of comparisons of a filter."""
    if isinstance(node, LogicalExpr):
        return sum(map(count_comparisons, node.terms))
    if isinstance(node, Not):
        return count_comparisons(node.expr)
    return count_comparisons(node.val_filter) if isinstance(node, ValuePath) else 1


class _FilterTranslation:
    """The translation of one filter; the parser limits the depth of its nodes."""

    def __init__(self, attributes: FilterAttributes) -> None:
        self.attributes = attributes

    def condition(
        self, node: FilterNode, entry_attributes: Mapping[str, FilterAttribute] | None = None
    ) -> ColumnElement[bool]:
        """SQL of a node. Inside of brackets, `entry_attributes` are those of the entry."""
        match node:
            case LogicalExpr():
                return self._joined_condition(node, entry_attributes)
            case Not(expr=inner_node):
                return not_(self.condition(inner_node, entry_attributes))
            case Present(attr_path=path):
                attribute, entry_list = self._attribute(path, entry_attributes)
                return entry_list.has_entry(attribute.present) if entry_list else attribute.present
            case Comparison(attr_path=path, op=operator, value=value):
                attribute, entry_list = self._attribute(path, entry_attributes)
                comparison = attribute.comparison(operator, value)
                return entry_list.has_entry(comparison) if entry_list else comparison
            case ValuePath(attr_path=path, val_filter=inner_node):
                if self._is_absent(path):
                    return false()
                entry_list = self.attributes.lists.get(self._name(path))
                if entry_list is None:
                    raise _unknown_attribute(path)
                return entry_list.has_entry(self.condition(inner_node, entry_list.entry_attributes))
        raise InvalidFilterException(detail="The filter has an unknown expression.")

    def _joined_condition(
        self, node: LogicalExpr, entry_attributes: Mapping[str, FilterAttribute] | None
    ) -> ColumnElement[bool]:
        """SQL of terms that are joined by `and` or `or`."""
        conditions = [self.condition(term, entry_attributes) for term in node.terms]
        if node.op is LogicalOperator.and_:
            return and_(*conditions)
        if self.access(node, entry_attributes) is FilterAccess.LOOKUP:
            return self.attributes.rows.found_by_any(conditions)
        return or_(*conditions)

    def access(
        self, node: FilterNode, entry_attributes: Mapping[str, FilterAttribute] | None = None
    ) -> FilterAccess:
        """Return what the database reads to find the rows that match a node."""
        match node:
            case LogicalExpr(op=operator, terms=terms):
                accesses = {self.access(term, entry_attributes) for term in terms}
                if operator is LogicalOperator.and_ and FilterAccess.LOOKUP in accesses:
                    return FilterAccess.LOOKUP
                is_of_entry = entry_attributes is not None
                return FilterAccess.SCAN if is_of_entry or len(accesses) > 1 else accesses.pop()
            case Not(expr=inner_node):
                inner = self.access(inner_node, entry_attributes)
                return FilterAccess.SCAN if inner is FilterAccess.LOOKUP else inner
            case Comparison(attr_path=path, op=operator, value=value) if value is not None:
                return self._attribute(path, entry_attributes)[0].access(operator)
            case ValuePath(attr_path=path, val_filter=inner_node) if not self._is_absent(path):
                entry_list = self.attributes.lists[self._name(path)]
                return self.access(inner_node, entry_list.entry_attributes)
        return FilterAccess.SCAN

    def _is_absent(self, path: AttrPath) -> bool:
        """True if only another resource type has the attribute."""
        if path.uri is not None:
            return path.uri.lower() == self.attributes.absent_schema.lower()
        return path.attr.lower() in self.attributes.absent_names

    def _name(self, path: AttrPath) -> str:
        """Return the name of an attribute in lower case. Raises for another schema."""
        if path.uri is not None and path.uri.lower() != self.attributes.schema.lower():
            raise _unknown_attribute(path)
        return path.attr.lower()

    def _attribute(
        self, path: AttrPath, entry_attributes: Mapping[str, FilterAttribute] | None
    ) -> tuple[FilterAttribute, EntryListAttribute | None]:
        """Return the attribute of a path, and the multi-valued attribute that contains it."""
        if entry_attributes is None and self._is_absent(path):
            return AbsentAttribute(), None
        name = self._name(path)
        sub_name = path.sub_attr.lower() if path.sub_attr else ""
        found: Any = None
        if entry_attributes is not None:
            found = None if sub_name else entry_attributes.get(name)
            entry_list = None
        elif (entry_list := self.attributes.lists.get(name)) is not None:
            if not sub_name:
                return entry_list, None
            found = entry_list.entry_attributes.get(sub_name)
        else:
            found = self.attributes.simple.get(f"{name}.{sub_name}" if sub_name else name)
        if found is None:
            raise _unknown_attribute(path)
        return found, entry_list


def _unknown_attribute(path: AttrPath) -> InvalidFilterException:
    return InvalidFilterException(detail=f"The attribute {path} can't be used in a filter.")
