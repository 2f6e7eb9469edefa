"""PATCH of SCIM accounts (RFC 7644, section 3.5.2)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from scim2_models import Context as ScimContext
from scim2_models import (
    InvalidPathException,
    InvalidValueException,
    MutabilityException,
    PatchOp,
    Path,
    TooManyException,
)
from scim2_models.path import AttrPath, ValuePath

from resolvers.scim.account_emails import MAX_EMAILS
from resolvers.scim.filters import count_comparisons
from resolvers.scim.group_patch import filters_of_operation, require_operations
from resolvers.scim.resources import TOLERANT_POLICY, USER_SCHEMA, AccountResource

MAX_PATH_COMPARISONS = 200  # each is made for every address of the account
MAX_EMAIL_OPERATIONS = 100  # each costs time for every address of the account
PATCH_SCHEMA = "urn:ietf:params:scim:api:messages:2.0:PatchOp"
ENTERPRISE_SCHEMA = "urn:ietf:params:scim:schemas:extension:enterprise:2.0:user"

# Standard attributes that the platform does not store. Directories send them by default, and those
# of the enterprise extension also without its URN.
IGNORED_ATTRIBUTES = frozenset(
    {
        "nickname", "profileurl", "title", "usertype", "locale", "timezone", "phonenumbers", "ims",
        "photos", "addresses", "x509certificates", "employeenumber", "costcenter", "organization",
        "division", "department", "manager",
    }
)  # fmt: skip
STORED_ATTRIBUTES = frozenset(
    {
        "externalid", "username", "name", "displayname", "emails", "active", "preferredlanguage",
        "password", "schemas",
    }
)  # fmt: skip
SIMPLE_ATTRIBUTES = STORED_ATTRIBUTES - {"name", "emails"}
READ_ONLY_ATTRIBUTES = frozenset({"id", "meta", "groups", "roles", "entitlements"})


@dataclass(frozen=True, slots=True)
class AccountPatch:
    """The checked operations of a PATCH request."""

    operations: Any  # of scim2-models
    writes_password: bool

    def patched_resource(self, present: AccountResource) -> AccountResource:
        """Return the attributes after all operations. Raises SCIMException."""
        resource = present.model_copy(deep=True)
        self.operations.patch(resource, scim_policy=TOLERANT_POLICY)
        return resource


def account_patch_from_json(operations: Any) -> AccountPatch:
    """Return the PATCH of an account from its operations.

    Operations on standard attributes that the platform does not store change nothing. Raises
    MutabilityException for roles and other read-only attributes, InvalidPathException for unknown
    ones, such as permissions, and ValidationError for a malformed operation.
    """
    require_operations(operations)
    email_operation_count = comparison_count = 0
    writes_password = False
    for operation in operations:
        comparison_count += sum(map(count_comparisons, filters_of_operation(operation)))
        for name in _written_attributes(operation):
            _require_writable(name)
            email_operation_count += name == "emails"
            writes_password |= name == "password"
        _require_few_entries(operation.get("value"))
    if email_operation_count > MAX_EMAIL_OPERATIONS:
        text = f"A PATCH request has at most {MAX_EMAIL_OPERATIONS} operations on emails."
        raise TooManyException(detail=text)
    if comparison_count > MAX_PATH_COMPARISONS:
        text = f"The paths of a PATCH request have at most {MAX_PATH_COMPARISONS} comparisons."
        raise TooManyException(detail=text)
    patch = PatchOp[AccountResource].model_validate(
        {"schemas": [PATCH_SCHEMA], "Operations": operations},
        scim_ctx=ScimContext.RESOURCE_PATCH_REQUEST,
        scim_policy=TOLERANT_POLICY,
    )
    return AccountPatch(patch, writes_password)


def _require_few_entries(value: Any) -> None:
    """Raise InvalidValueException if a value has a list that is longer than any account's."""
    for item in value.values() if isinstance(value, dict) else [value]:
        if isinstance(item, list) and len(item) > MAX_EMAILS:
            raise InvalidValueException(detail=f"A list has at most {MAX_EMAILS} entries.")


def _written_attributes(operation: dict[str, Any]) -> Iterator[str]:
    """Yield the names of the attributes that an operation writes, in lower case."""
    path, value = operation.get("path"), operation.get("value")
    if isinstance(path, str) and path:
        yield _attribute_name(path)
    elif isinstance(value, dict):
        for name in value:
            yield _attribute_name(name)


def _attribute_name(path: str) -> str:
    """Return the name of the attribute of a path; the schema for one of another schema.

    Raises InvalidPathException if the path is malformed.
    """
    folded = path.lower()
    if folded == ENTERPRISE_SCHEMA or folded.startswith(f"{ENTERPRISE_SCHEMA}:"):
        return ENTERPRISE_SCHEMA
    if folded == USER_SCHEMA.lower():
        return "schemas"
    node = Path(path).ast
    if not isinstance(node, AttrPath | ValuePath):
        raise InvalidPathException(detail=f"The path {path!r} is not supported.")
    attribute = node.attr_path if isinstance(node, ValuePath) else node
    if attribute.uri is not None and attribute.uri.lower() != USER_SCHEMA.lower():
        return str(attribute.uri).lower()
    name = attribute.attr.lower()
    if name in SIMPLE_ATTRIBUTES and (attribute.sub_attr or isinstance(node, ValuePath)):
        raise InvalidPathException(detail=f"The attribute {name} has no parts.")
    return name


def _require_writable(name: str) -> None:
    """Raise MutabilityException if the attribute is read-only, InvalidPathException if unknown."""
    if name in READ_ONLY_ATTRIBUTES:
        raise MutabilityException(detail=f"The attribute {name} is read-only.")
    if name not in STORED_ATTRIBUTES | IGNORED_ATTRIBUTES | {ENTERPRISE_SCHEMA}:
        raise InvalidPathException(detail=f"Accounts have no attribute {name}.")
