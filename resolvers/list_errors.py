"""Errors of the items of a list in an input, each with the position of its item in the path."""

from collections.abc import Mapping, Sequence

from models.errors import RequestError, raise_errors


def error_lists(errors: Mapping[int, RequestError]) -> dict[int, list[RequestError]]:
    """Return all errors of each item, by the position of the item."""
    return {index: error.all_errors for index, error in errors.items()}


def raise_errors_with_list_paths(
    list_path: Sequence[str], errors: Mapping[int, Sequence[RequestError]]
) -> None:
    """Raise the errors in the order of the items, with paths of the list and the position.

    Raises nothing if there is no error, and MultipleErrors if there are several.
    """
    raise_errors(
        [
            error.copy_with_path([*list_path, str(index), *error.path])
            for index, item_errors in sorted(errors.items())
            for error in item_errors
        ]
    )
