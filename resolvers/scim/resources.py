"""The SCIM resource types: accounts as User, and groups as Group (RFC 7643, section 4)."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Annotated, Any

from pydantic import Field
from scim2_models import (
    URN,
    CaseExact,
    ComplexAttribute,
    ExtensibleStringEnum,
    Mutability,
    Reference,
    Required,
    Resource,
    ResourceType,
    Returned,
    Schema,
    ScimPolicy,
    Uniqueness,
)

if TYPE_CHECKING:  # the names of the resource types in references, not of Python classes
    from scim2_models import Group
    from scim2_models import User as AnyUser

    User = AnyUser[Any]

USER_SCHEMA = "urn:ietf:params:scim:schemas:core:2.0:User"
GROUP_SCHEMA = "urn:ietf:params:scim:schemas:core:2.0:Group"
USER, GROUP = "User", "Group"
MEMBER_TYPE = "User"
# Attributes in filters and orders that only one resource type has, in lower case
ONLY_OF_ACCOUNTS = frozenset(
    {"username", "name", "emails", "active", "preferredlanguage", "roles", "groups", "manager"}
)
ONLY_OF_GROUPS = frozenset({"members"})
LANGUAGES = ["en", "de", "fr", "es", "it", "nl", "pl"]

# Microsoft Entra ID sends attributes that are not announced, the value of a removal beside its
# path, and changes of an email address that is not stored yet.
TOLERANT_POLICY = ScimPolicy(
    unknown=ScimPolicy.Unknown.ignore,
    remove_value_as_filter=ScimPolicy.RemoveValue.apply,
    unmatched_path_filter=ScimPolicy.UnmatchedPathFilter.create,
)


class AccountNameAttribute(ComplexAttribute):
    """The components of the name of an account."""

    formatted: str | None = None
    family_name: str | None = None
    given_name: str | None = None
    middle_name: str | None = None
    honorific_prefix: str | None = None
    honorific_suffix: str | None = None


class AccountEmailType(ExtensibleStringEnum):
    """The customary types of an email address; others are stored, too."""

    work = "work"
    home = "home"
    other = "other"


class AccountEmailAttribute(ComplexAttribute):
    """An address of an account."""

    value: Annotated[str | None, Required.true] = None
    type: AccountEmailType | None = None
    primary: bool | None = None


class AccountRoleAttribute(ComplexAttribute):
    """The role of an account, which SCIM can't change."""

    value: Annotated[str | None, Mutability.read_only] = None


class AccountGroupAttribute(ComplexAttribute):
    """A group that an account is a member of."""

    value: Annotated[str | None, Mutability.read_only] = None
    ref: Annotated[Reference["Group"] | None, Mutability.read_only] = Field(
        None, serialization_alias="$ref", validation_alias="$ref"
    )
    display: Annotated[str | None, Mutability.read_only] = None
    type: Annotated[str | None, Mutability.read_only] = Field(None, examples=["direct"])


class AccountResource(Resource[Any]):
    """An account."""

    __schema__ = URN(USER_SCHEMA)

    user_name: Annotated[
        str | None, Required.true, Uniqueness.server, Returned.always, CaseExact.false
    ] = None
    name: AccountNameAttribute | None = None
    display_name: str | None = None
    emails: Annotated[list[AccountEmailAttribute] | None, Required.true] = None
    active: Annotated[bool | None, Required.true] = None
    preferred_language: str | None = Field(None, examples=LANGUAGES)
    password: Annotated[str | None, Mutability.write_only, Returned.never] = None
    groups: Annotated[list[AccountGroupAttribute] | None, Mutability.read_only] = None
    roles: Annotated[list[AccountRoleAttribute] | None, Mutability.read_only] = None
    entitlements: Annotated[list[AccountRoleAttribute] | None, Mutability.read_only] = None


class GroupMemberAttribute(ComplexAttribute):
    """An account that is a member of a group."""

    value: Annotated[str | None, Mutability.immutable, CaseExact.true, Required.true] = None
    ref: Annotated[Reference["User"] | None, Mutability.immutable] = Field(
        None, serialization_alias="$ref", validation_alias="$ref"
    )
    type: Annotated[str | None, Mutability.immutable] = Field(None, examples=[MEMBER_TYPE])


class GroupResource(Resource[Any]):
    """A group of accounts."""

    __schema__ = URN(GROUP_SCHEMA)

    display_name: Annotated[str | None, Required.true] = None
    members: list[GroupMemberAttribute] | None = None


@cache
def resource_schemas() -> Sequence[Schema]:
    """Return the schemas of both resource types."""
    schemas = []
    for model, name, description in (
        (AccountResource, USER, "Account of the mail platform"),
        (GroupResource, GROUP, "Group of accounts"),
    ):
        schema = model.to_schema()
        schema.name, schema.description = name, description
        schemas.append(schema)
    return schemas


@cache
def resource_types() -> Sequence[ResourceType]:
    """Return both resource types."""
    types = []
    for model, name in ((AccountResource, USER), (GroupResource, GROUP)):
        resource_type = ResourceType.from_resource(model)
        resource_type.id = resource_type.name = name
        types.append(resource_type)
    return types
