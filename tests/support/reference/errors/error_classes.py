"""The classes of errors, with their codes, and the classes that an exception handler catches."""

import ast
import importlib
from collections.abc import Collection
from functools import cache

from models.errors import ErrorCode, Forbidden, RequestError, ServiceUnavailable
from tests.support.reference.errors.code_index import code_index

ERRORS_MODULE = "models.errors"
# Classes whose code depends on their arguments.
CODES_BY_CLASS: dict[type[RequestError], frozenset[str]] = {
    RequestError: frozenset(ErrorCode),
    Forbidden: frozenset({ErrorCode.FORBIDDEN, ErrorCode.FORBIDDEN_OPERATION}),
    ServiceUnavailable: frozenset(
        {ErrorCode.ABORTED, ErrorCode.NO_SESSION, ErrorCode.UNAVAILABLE, ErrorCode.USER_OFFLINE}
    ),
}


@cache
def error_classes() -> dict[str, type[RequestError]]:
    """The classes of errors, by name."""
    index, found = code_index(), {}
    for name, definition in index.definitions.items():
        if isinstance(definition.node, ast.ClassDef) and index.method(name, "all_errors"):
            cls = getattr(importlib.import_module(definition.module), definition.node.name)
            if issubclass(cls, RequestError) and cls is not RequestError:
                found[name] = cls
    del found[f"{ERRORS_MODULE}.MultipleErrors"]
    return found


def error_class(name: str) -> type[RequestError] | None:
    """Return the error class with this name, or None if it is none."""
    return error_classes().get(name)


def is_handled(error: type[RequestError], names: Collection[str]) -> bool:
    """True if one of these class names is that of the error or of a base class."""
    return any(base.__name__ in names for base in error.__mro__)


@cache
def names_with_subclasses(names: frozenset[str]) -> frozenset[str]:
    """Return names of classes with those of the errors that are subclasses.

    So the classes that two handlers catch have the ones that both catch in common.
    """
    return names | {cls.__name__ for cls in error_classes().values() if is_handled(cls, names)}


@cache
def codes_of_classes(names: frozenset[str]) -> frozenset[str]:
    """Return the codes of which all errors have one of these classes or a subclass."""
    classes: list[type[RequestError]] = [RequestError, *error_classes().values()]
    codes = [
        CODES_BY_CLASS.get(cls, frozenset({cls.code}))
        for cls in classes
        if RequestError in (cls, *cls.__bases__)
        and ("code" in vars(cls) or cls in CODES_BY_CLASS)
        and is_handled(cls, names)
    ]
    return frozenset[str]().union(*codes)
