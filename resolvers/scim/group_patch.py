"""PATCH of SCIM groups (RFC 7644, section 3.5.2), with members as sets.

A group can have thousands of members and a request a thousand operations, so that each operation
must cost no more than its own members.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, cast

from scim2_models import (
    InvalidPathException,
    InvalidSyntaxException,
    InvalidValueException,
    MutabilityException,
    NoTargetException,
    Path,
    TooManyException,
)
from scim2_models.path import (
    AttrPath,
    CompareOperator,
    Comparison,
    FilterNode,
    LogicalExpr,
    LogicalOperator,
    Not,
    Present,
    ValuePath,
)

from resolvers.scim.filters import count_comparisons
from resolvers.scim.group_changes import GroupState
from resolvers.scim.resources import GROUP_SCHEMA, MEMBER_TYPE
from resolvers.scim.search_parameters import ScimIds

MAX_OPERATIONS = 1000
MAX_FILTER_EVALUATIONS = 200_000  # comparisons with members, of all operations of a request
MAX_PATH_LENGTH = 1000  # characters
READ_ONLY_ATTRIBUTES = frozenset({"id", "meta", "schemas"})
TEXT_FIELDS = {"displayname": "display_name", "externalid": "external_id"}


@dataclass(slots=True)
class GroupPatch:
    """The operations of a PATCH of a group, which are applied in order."""

    operations: Sequence[Mapping[str, Any]]
    ids: ScimIds
    evaluations_left: int = field(default=MAX_FILTER_EVALUATIONS, init=False)

    def apply(self, present: GroupState) -> GroupState:
        """Return the state after all operations. Raises SCIMException for a wrong operation."""
        state = replace(present, member_ids=set(present.member_ids))
        self.evaluations_left = MAX_FILTER_EVALUATIONS
        for operation in self.operations:
            state = self._state_after_operation(state, operation)
        return replace(state, member_ids=frozenset(state.member_ids))

    def _state_after_operation(self, state: GroupState, operation: Mapping[str, Any]) -> GroupState:
        verb = str(operation.get("op", "")).lower()
        if verb not in ("add", "replace", "remove"):
            raise InvalidValueException(detail="op must be add, replace or remove.")
        path, value = operation.get("path"), operation.get("value")
        if path is not None and not isinstance(path, str):
            raise InvalidPathException(detail="path must be a text.")
        if not path:
            if verb == "remove":
                raise NoTargetException(detail="A remove operation requires a path.")
            if not isinstance(value, Mapping):
                raise InvalidValueException(detail="Without a path, value must be an object.")
            for name, item in value.items():
                if name.lower() not in READ_ONLY_ATTRIBUTES:  # Okta sends the id with a new name
                    state = self._state_after_attribute_write(
                        state, verb, _attribute_path(name), item
                    )
            return state
        node = Path(path).ast
        if isinstance(node, ValuePath):
            return self._state_after_selected_members_write(state, verb, node, value)
        if not isinstance(node, AttrPath):
            raise InvalidPathException(detail=f"The path {path!r} is not supported.")
        return self._state_after_attribute_write(state, verb, node, value)

    def _state_after_attribute_write(
        self, state: GroupState, verb: str, path: AttrPath, value: Any
    ) -> GroupState:
        """Write an attribute of the group."""
        name = _attribute_name(path)
        if name in READ_ONLY_ATTRIBUTES:
            raise MutabilityException(detail=f"{path} is read-only.")
        if path.sub_attr:
            raise InvalidPathException(detail=f"The path {path} can't be changed.")
        if name in TEXT_FIELDS:
            if verb == "remove":
                value = None
            elif value is not None and not isinstance(value, str):
                raise InvalidValueException(detail=f"{path} must be a text.")
            if name == "displayname" and not value:
                raise MutabilityException(detail="displayName is required.")
            return replace(state, **{TEXT_FIELDS[name]: value})
        if name != "members":
            raise InvalidPathException(detail=f"Groups have no attribute {path}.")
        return replace(state, member_ids=self._changed_members(state, verb, value))

    def _changed_members(self, state: GroupState, verb: str, value: Any) -> set[int]:
        """Return the members after an operation without a filter."""
        present = cast("set[int]", state.member_ids)  # `apply` has copied it
        if verb == "remove" and value is None:
            return set()
        given = member_ids_from_json(value, self.ids, skip_unknown=verb == "remove")
        if verb == "remove":  # Microsoft Entra ID names the members beside the path
            present -= given
        elif verb == "add":
            present |= given
        return given if verb == "replace" else present

    def _state_after_selected_members_write(
        self, state: GroupState, verb: str, node: ValuePath, value: Any
    ) -> GroupState:
        """Change the members that a filter in brackets selects."""
        if _attribute_name(node.attr_path) != "members":
            raise InvalidPathException(detail=f"The path {node} is not supported.")
        members = cast("set[int]", state.member_ids)
        selected = self._selected_members(members, node.val_filter)
        if verb == "remove":
            if node.sub_attr:
                raise MutabilityException(detail="The attributes of a member are immutable.")
            members -= selected
            return state
        if not selected:
            raise NoTargetException(detail=f"No member matches {node}.")
        if node.sub_attr or value is not None:
            raise MutabilityException(detail="The attributes of a member are immutable.")
        return state

    def _selected_members(self, members: Collection[int], node: FilterNode) -> set[int]:
        """Return the members that match a filter."""
        match node:
            case Comparison(op=CompareOperator.eq, value=text) if _is_member_value(node):
                key = self.ids.decode_user_id(str(text))
                return {key} if key is not None and key in members else set()
        self.evaluations_left -= len(members) * count_comparisons(node)
        if self.evaluations_left < 0:
            text = "The filters of the paths select from too many members: send fewer operations."
            raise TooManyException(detail=text)
        is_selected = self._member_filter(node)
        return {key for key in members if is_selected(key)}

    def _member_filter(self, node: FilterNode) -> Any:
        """Return the function that decides whether a member matches a filter."""
        if isinstance(node, LogicalExpr):
            filters = [self._member_filter(term) for term in node.terms]
            join = all if node.op is LogicalOperator.and_ else any
            return lambda key: join(matches(key) for matches in filters)
        if isinstance(node, Not):
            inner = self._member_filter(node.expr)
            return lambda key: not inner(key)
        if isinstance(node, Present) and _attribute_name(node.attr_path) in ("value", "type"):
            return lambda _key: True
        if isinstance(node, Comparison) and node.op in (CompareOperator.eq, CompareOperator.ne):
            is_negated = node.op is CompareOperator.ne
            name = _attribute_name(node.attr_path)
            if name == "value":
                wanted = self.ids.decode_user_id(str(node.value))
                return lambda key: (key == wanted) is not is_negated
            if name == "type":
                is_user = str(node.value).lower() == MEMBER_TYPE.lower()
                return lambda _key: is_user is not is_negated
        raise InvalidPathException(detail=f"Members can't be selected by {node}.")


def _is_member_value(node: Comparison) -> bool:
    """True if a comparison is with the ID of a member."""
    return _attribute_name(node.attr_path) == "value"


def _attribute_path(name: str) -> AttrPath:
    """Return the path of a key of a value. Raises InvalidPathException if it is none."""
    node = Path(name).ast
    if not isinstance(node, AttrPath):
        raise InvalidPathException(detail=f"The path {name!r} is not supported.")
    return node


def _attribute_name(path: AttrPath) -> str:
    """Return the name of an attribute in lower case. Raises for another schema."""
    if path.uri is not None and path.uri.lower() != GROUP_SCHEMA.lower():
        raise InvalidPathException(detail=f"Groups have no attribute {path}.")
    return path.attr.lower()


def member_ids_from_json(value: Any, ids: ScimIds, *, skip_unknown: bool = False) -> set[int]:
    """Return the ids of the users in a list of members.

    Raises InvalidValueException if an entry is no user; with `skip_unknown` it is left out.
    """
    entries = value if isinstance(value, list) else [value]
    member_ids = set[int]()
    for entry in entries:
        if not isinstance(entry, Mapping):
            raise InvalidValueException(detail="members must be objects with value.")
        attributes = {str(name).lower(): item for name, item in entry.items()}
        text, kind = attributes.get("value"), attributes.get("type")
        key = ids.decode_user_id(text) if isinstance(text, str) else None
        if kind is not None and str(kind).lower() != MEMBER_TYPE.lower():
            raise InvalidValueException(detail="members: only users can be members.")
        if key is not None:
            member_ids.add(key)
        elif not skip_unknown:
            raise InvalidValueException(detail="members: there is no account with this ID.")
    return member_ids


def group_patch_from_json(operations: Any, ids: ScimIds) -> GroupPatch:
    """Return the PATCH of a group from its operations. Raises SCIMException."""
    require_operations(operations)
    return GroupPatch(operations, ids)


def require_operations(operations: Any) -> None:
    """Raise InvalidSyntaxException if this is no list of 1 to 1,000 operations.

    Raises InvalidPathException for a path above MAX_PATH_LENGTH.
    """
    if not isinstance(operations, list) or not operations:
        raise InvalidSyntaxException(detail="Operations must be a list of operations.")
    if len(operations) > MAX_OPERATIONS:
        text = f"A PATCH request has at most {MAX_OPERATIONS:,} operations."
        raise InvalidSyntaxException(detail=text)
    if not all(isinstance(operation, dict) for operation in operations):
        raise InvalidSyntaxException(detail="Each operation must be an object.")
    paths = (path for operation in operations for path in _paths_of_operation(operation))
    if any(len(path) > MAX_PATH_LENGTH for path in paths):
        raise InvalidPathException(detail=f"A path has at most {MAX_PATH_LENGTH:,} characters.")


def filters_of_operation(operation: Mapping[str, Any]) -> list[FilterNode]:
    """Return the filters in the paths of an operation. Raises InvalidPathException."""
    nodes = [Path(text).ast for text in _paths_of_operation(operation) if "[" in text]
    return [node.val_filter for node in nodes if isinstance(node, ValuePath)]


def _paths_of_operation(operation: Mapping[str, Any]) -> list[str]:
    path, value = operation.get("path"), operation.get("value")
    names = [path] if path else value if isinstance(value, dict) else []
    return [name for name in names if isinstance(name, str)]
