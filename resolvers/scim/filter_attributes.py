"""Attributes that SCIM filters compare, as SQL conditions (RFC 7644, section 3.4.2.2).

Every condition is true or false, never NULL, so that `not` works. Texts are compared without case
and accents, except case-exact ones.
"""

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, auto
from typing import Any, Protocol

from scim2_models import InvalidFilterException
from scim2_models.path import CompareOperator
from sqlalchemy import ColumnElement, Select, false, true, union_all

from mail.addresses.address_syntax import UNSTORABLE
from models.store.text_folding import FoldedText, fold_text

OperatorCondition = Callable[[Any, Any], ColumnElement[bool]]
TEXT_CONDITIONS: Mapping[CompareOperator, OperatorCondition] = {
    CompareOperator.eq: lambda column, value: column == value,
    CompareOperator.co: lambda column, value: column.contains(value, autoescape=True),
    CompareOperator.sw: lambda column, value: column.startswith(value, autoescape=True),
    CompareOperator.ew: lambda column, value: column.endswith(value, autoescape=True),
    CompareOperator.gt: lambda column, value: column > value,
    CompareOperator.ge: lambda column, value: column >= value,
    CompareOperator.lt: lambda column, value: column < value,
    CompareOperator.le: lambda column, value: column <= value,
}


RANGE_OPERATORS = frozenset(
    {
        CompareOperator.eq,
        CompareOperator.gt,
        CompareOperator.ge,
        CompareOperator.lt,
        CompareOperator.le,
    }
)


class FilterAccess(Enum):
    """What the database reads to find the rows that match a condition."""

    LOOKUP = auto()  # these rows only: an index finds them
    INDEX = auto()  # an index of the tenant that has all compared columns
    SCAN = auto()  # all rows of the tenant


class FilterAttribute(Protocol):
    """An attribute that a filter can compare."""

    @property
    def present(self) -> ColumnElement[bool]:
        """SQL: the attribute has a value."""

    def access(self, operator: CompareOperator) -> FilterAccess:
        """Return what a comparison with a value reads."""

    def comparison(self, operator: CompareOperator, value: Any) -> ColumnElement[bool]:
        """SQL: the comparison with a value. Raises InvalidFilterException if it is invalid."""


def _null_safe(
    attribute: FilterAttribute,
    operator: CompareOperator,
    value: Any,
    compare: Callable[[CompareOperator, Any], ColumnElement[bool]],
) -> ColumnElement[bool]:
    """SQL: a comparison that is never NULL. A missing value differs from every other."""
    if value is None:
        if operator is CompareOperator.eq:
            return ~attribute.present
        if operator is CompareOperator.ne:
            return attribute.present
        raise InvalidFilterException(detail=f"The operator {operator} needs a value.")
    if operator is CompareOperator.ne:
        return ~(attribute.present & compare(CompareOperator.eq, value))
    return attribute.present & compare(operator, value)


@dataclass(frozen=True, slots=True)
class TextAttribute:
    """A text in a column. `equal` replaces the comparison of `eq`, to use an index."""

    column: Any
    folded_column: Callable[[Any], Any] = FoldedText
    fold_value: Callable[[str], str] = fold_text
    equal: Callable[[str], ColumnElement[bool]] | None = None

    def access(self, operator: CompareOperator) -> FilterAccess:
        """Return LOOKUP for `eq` if it has its own comparison."""
        has_index = self.equal is not None and operator is CompareOperator.eq
        return FilterAccess.LOOKUP if has_index else FilterAccess.SCAN

    @property
    def present(self) -> ColumnElement[bool]:
        """SQL: the text is neither NULL nor empty."""
        is_present: ColumnElement[bool] = self.column.is_not(None) & (self.column != "")
        return is_present

    def comparison(self, operator: CompareOperator, value: Any) -> ColumnElement[bool]:
        """SQL: the comparison. Raises InvalidFilterException if the value is no text."""
        return _null_safe(self, operator, value, self._compare)

    def _compare(self, operator: CompareOperator, value: Any) -> ColumnElement[bool]:
        if not isinstance(value, str) or UNSTORABLE.search(value):
            raise InvalidFilterException(detail="The attribute is compared with a text.")
        if operator is CompareOperator.eq and self.equal is not None:
            return self.equal(value)
        return TEXT_CONDITIONS[operator](self.folded_column(self.column), self.fold_value(value))


def exact_text(
    column: Any, equal: Callable[[str], ColumnElement[bool]] | None = None
) -> TextAttribute:
    """Return the attribute of a text that is compared exactly."""
    return TextAttribute(column, lambda exact: exact, lambda value: value, equal)


@dataclass(frozen=True, slots=True)
class BooleanAttribute:
    """A condition that is true or false for each row."""

    condition: ColumnElement[bool]
    is_in_index: bool = False  # an index of the tenant has its columns

    def access(self, operator: CompareOperator) -> FilterAccess:
        """Return INDEX if an index has the columns of the condition."""
        del operator
        return FilterAccess.INDEX if self.is_in_index else FilterAccess.SCAN

    @property
    def present(self) -> ColumnElement[bool]:
        """SQL: always true."""
        return true()

    def comparison(self, operator: CompareOperator, value: Any) -> ColumnElement[bool]:
        """SQL: the comparison by eq or ne."""
        return _null_safe(self, operator, value, self._compare)

    def _compare(self, operator: CompareOperator, value: Any) -> ColumnElement[bool]:
        if isinstance(value, str) and value.lower() in ("true", "false"):
            value = value.lower() == "true"
        if operator is not CompareOperator.eq or not isinstance(value, bool):
            text = "The attribute is compared with true or false, by eq or ne."
            raise InvalidFilterException(detail=text)
        return self.condition if value else ~self.condition


@dataclass(frozen=True, slots=True)
class TimeAttribute:
    """A time in a column that is never NULL.

    `indexed_rows` are rows that an index has in the order of this column, and outside of which the
    query finds nothing.
    """

    column: Any
    indexed_rows: ColumnElement[bool] | None = None

    def access(self, operator: CompareOperator) -> FilterAccess:
        """Return LOOKUP for a range of times if there is an index."""
        has_index = self.indexed_rows is not None and operator in RANGE_OPERATORS
        return FilterAccess.LOOKUP if has_index else FilterAccess.SCAN

    @property
    def present(self) -> ColumnElement[bool]:
        """SQL: always true."""
        return true()

    def comparison(self, operator: CompareOperator, value: Any) -> ColumnElement[bool]:
        """SQL: the comparison with a dateTime (RFC 7643, section 2.3.5)."""
        return _null_safe(self, operator, value, self._compare)

    def _compare(self, operator: CompareOperator, value: Any) -> ColumnElement[bool]:
        if operator in (CompareOperator.co, CompareOperator.sw, CompareOperator.ew):
            raise InvalidFilterException(detail=f"A time can't be compared by {operator}.")
        try:
            time = datetime.fromisoformat(value)
        except (TypeError, ValueError):
            text = "The attribute is compared with a time such as 2030-01-31T08:30:00Z."
            raise InvalidFilterException(detail=text) from None
        condition = TEXT_CONDITIONS[operator](
            self.column, time if time.tzinfo else time.replace(tzinfo=UTC)
        )
        return condition if self.indexed_rows is None else self.indexed_rows & condition


@dataclass(frozen=True, slots=True)
class IdAttribute:
    """A row key, which clients know as an opaque ID."""

    column: Any
    decode: Callable[[str], int | None]

    def access(self, operator: CompareOperator) -> FilterAccess:
        """Return LOOKUP for `eq`."""
        is_lookup = operator is CompareOperator.eq
        return FilterAccess.LOOKUP if is_lookup else FilterAccess.SCAN

    @property
    def present(self) -> ColumnElement[bool]:
        """SQL: always true."""
        return true()

    def comparison(self, operator: CompareOperator, value: Any) -> ColumnElement[bool]:
        """SQL: the comparison by eq or ne. An unknown ID equals no row."""
        return _null_safe(self, operator, value, self._compare)

    def _compare(self, operator: CompareOperator, value: Any) -> ColumnElement[bool]:
        if operator is not CompareOperator.eq or not isinstance(value, str):
            raise InvalidFilterException(detail="An ID is compared with a text, by eq or ne.")
        key = self.decode(value)
        return false() if key is None else self.column == key


class AbsentAttribute:
    """An attribute that no resource of the type has."""

    def access(self, operator: CompareOperator) -> FilterAccess:
        """Return SCAN: a comparison with a missing value can fit all rows."""
        del operator
        return FilterAccess.SCAN

    @property
    def present(self) -> ColumnElement[bool]:
        """SQL: always false."""
        return false()

    def comparison(self, operator: CompareOperator, value: Any) -> ColumnElement[bool]:
        """SQL: the comparison with a missing value, which differs from every other."""
        equals_null = (value is None) is (operator is CompareOperator.eq)
        is_equality = operator in (CompareOperator.eq, CompareOperator.ne)
        return true() if is_equality and equals_null else false()


@dataclass(frozen=True, slots=True)
class EntryListAttribute:
    """A multi-valued attribute: `has_entry` is the SQL that some entry meets a condition."""

    has_entry: Callable[[ColumnElement[bool]], ColumnElement[bool]]
    entry_attributes: Mapping[str, FilterAttribute]  # by name in lower case

    def access(self, operator: CompareOperator) -> FilterAccess:
        """Return what a comparison of `value` reads."""
        return self.entry_attributes["value"].access(operator)

    @property
    def present(self) -> ColumnElement[bool]:
        """SQL: there is an entry."""
        return self.has_entry(true())

    def comparison(self, operator: CompareOperator, value: Any) -> ColumnElement[bool]:
        """SQL: the `value` of some entry fits."""
        return self.has_entry(self.entry_attributes["value"].comparison(operator, value))


@dataclass(frozen=True, slots=True)
class ResourceRows:
    """The rows of a resource type: the key, and a SELECT of keys from all tables with columns."""

    id_column: Any
    select_ids: Select[Any]

    def found_by_any(self, conditions: Sequence[ColumnElement[bool]]) -> ColumnElement[bool]:
        """SQL: a row that one of these conditions finds, each by its own index."""
        selects = (self.select_ids.where(condition).correlate(None) for condition in conditions)
        found: ColumnElement[bool] = self.id_column.in_(union_all(*selects))
        return found


@dataclass(frozen=True, slots=True)
class FilterAttributes:
    """The attributes of a resource type, by name in lower case, such as `name.familyname`.

    `absent_names` are those of another type, with the schema `absent_schema`.
    """

    schema: str
    rows: ResourceRows
    simple: Mapping[str, FilterAttribute]
    lists: Mapping[str, EntryListAttribute] = field(default_factory=dict)
    absent_names: Set[str] = frozenset()
    absent_schema: str = ""
