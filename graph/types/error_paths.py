"""Paths of errors that resolvers raise without knowledge of the input's lists and patch."""

from collections.abc import Collection, Generator
from contextlib import contextmanager

from models.errors import RequestError

IDS_PART = "ids"  # the first part of the path if the value is an item of the list of objects
PATCH_FIELD = "set"


@contextmanager
def error_paths_below(list_field: str, *, other_fields: Collection[str] = ()) -> Generator[None]:
    """Complete the paths of errors: `ids` becomes the list of references with the position.

    A field of the patch gets `set` before it. Paths that begin with `list_field`, `set`, `options`
    or one of `other_fields` of the input are complete.
    """
    complete_starts = {list_field, PATCH_FIELD, "options", *other_fields}
    try:
        yield
    except RequestError as error:
        for single_error in error.all_errors:
            _complete_path(single_error, list_field, complete_starts)
        raise


def _complete_path(error: RequestError, list_field: str, complete_starts: Collection[str]) -> None:
    first_part, rest = (error.path[0], error.path[1:]) if error.path else ("", [])
    if first_part == IDS_PART:
        position = [] if error.index is None else [str(error.index)]
        error.path, error.index = [list_field, *position, *rest], None
    elif first_part and first_part not in complete_starts:
        error.path, error.index = [PATCH_FIELD, *error.path], None
