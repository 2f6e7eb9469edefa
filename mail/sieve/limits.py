"""Limits on the size and the running time of scripts."""

SCRIPT = 64 << 10  # bytes
NESTING = 15  # blocks in blocks, and tests in tests
PROBLEMS = 20  # that are reported of one script
FOLDED = 500  # comparison keys that are cached for a message
STEPS = 5_000  # of one run
PER_STEP = 16 << 10  # characters that count as one step
ACTIONS = 32  # of one run
REDIRECTS = 4
VARIABLES = 128
VARIABLE = 4_000  # characters of a value (RFC 5229, section 6)
EXPANDED = 64 << 10  # characters of a string with its variables replaced
MATCHES = 32  # numbered variables, with ${0}
TRACED = 200  # characters that are shown of a string in a trace
KEPT_IDS = 16  # ids that one run can check with `duplicate`
PIECE = 256 << 10  # bytes of a MIME part that are read
EXPRESSIONS = 100  # regular expressions of a script
EDITS = 64  # header fields that one run adds or deletes
FIELD = 2_000  # characters of a field that is added
