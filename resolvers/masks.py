"""Masks of paths, as IMAP LIST has them: * is anything, % anything within a level."""

LONGEST = 256  # characters of a mask


def fits(path: str, mask: str) -> bool:
    """Whether the mask stands for the whole path, in time that grows with both and no faster."""
    states = _skipped({0}, mask)
    for letter in path:
        states = _skipped(
            {
                at if mask[at] in "*%" else at + 1
                for at in states
                if at < len(mask)
                and (mask[at] in (letter, "*") or (mask[at] == "%" != letter != "/"))
            },
            mask,
        )
        if not states:
            return False
    return len(mask) in states


def _skipped(states: set[int], mask: str) -> set[int]:
    """The states, and those behind wildcards that stand for nothing."""
    found = set(states)
    for at in states:
        place = at
        while place < len(mask) and mask[place] in "*%":
            place += 1
            found.add(place)
    return found
