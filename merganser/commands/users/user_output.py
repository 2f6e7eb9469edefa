"""The text of users and API keys in tables."""


def user_cell_text(_column: str, value: object) -> str:
    """Return the text of a value in a table of users or API keys. An empty list means all."""
    if isinstance(value, list):
        return " ".join(map(str, value)) or "all"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)
