"""Limits on the size and the running time of scripts."""

MAX_SCRIPT_BYTES = 64 << 10  # bytes
MAX_NESTING = 15  # blocks in blocks, and tests in tests
MAX_PROBLEMS = 20  # that are reported of one script
MAX_CACHED_KEYS = 500  # comparison keys that are cached for a message
MAX_STEPS = 5_000  # of one run
CHARACTERS_PER_STEP = 16 << 10  # characters that count as one step
STRINGS_PER_STEP = 64  # strings of a list that count as one step
EXPANDED_CHARACTERS_PER_STEP = 1000  # characters of a string with its variables replaced
CHARACTERS_PER_PIECE = 50  # a variable, or the text between two, costs as much
MAX_ACTIONS = 32  # of one run
MAX_REDIRECTS = 4
MAX_VARIABLES = 128
MAX_VARIABLE_LENGTH = 4_000  # characters of a value (RFC 5229, section 6)
MAX_EXPANDED_LENGTH = 64 << 10  # characters of a string with its variables replaced
MAX_MATCH_VARIABLES = 32  # numbered variables, with ${0}
MAX_TRACED_LENGTH = 200  # characters that are shown of a string in a trace
MAX_DUPLICATE_TESTS = 16  # ids that one run can check with `duplicate`
MAX_PART_BYTES = 256 << 10  # bytes of a MIME part that are read
MAX_REGEXES = 100  # regular expressions of a script
MAX_EDITS = 64  # header fields that one run adds or deletes
MAX_FIELD_LENGTH = 2_000  # characters of a field that is added
