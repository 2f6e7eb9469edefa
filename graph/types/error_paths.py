"""Paths of errors that resolvers raise without knowledge of the input's lists and patch."""

from collections.abc import Collection, Generator
from contextlib import contextmanager

from models.errors import RequestError

IDS_PART = "ids"  # the first part of the path if the value is an item of the list of objects
PATCH_FIELD = "set"


@contextmanager
def error_paths_below(
    list_field: str, *, patch_field: str = PATCH_FIELD, other_fields: Collection[str] = ()
) -> Generator[None]:
    """Complete the paths of errors: `ids` becomes the list of references with the position.

    A field of the patch gets `patch_field` before it. Paths that begin with `list_field`,
    `patch_field`, `options` or one of `other_fields` of the input are complete.
    """
    complete_starts = {list_field, patch_field, "options", *other_fields}
    try:
        yield
    except RequestError as error:
        for single_error in error.all_errors:
            first_part = single_error.path[0] if single_error.path else ""
            if first_part == IDS_PART:
                _name_list_item(single_error, list_field)
            elif first_part and first_part not in complete_starts:
                single_error.path, single_error.index = [patch_field, *single_error.path], None
        raise


def _name_list_item(error: RequestError, list_field: str) -> None:
    position = [] if error.index is None else [str(error.index)]
    error.path, error.index = [list_field, *position, *error.path[1:]], None
