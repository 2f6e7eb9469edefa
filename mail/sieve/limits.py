"""How much a script may be and do."""

SCRIPT = 64 << 10  # bytes
NESTING = 15  # blocks in blocks, and tests in tests
PROBLEMS = 20  # that are told of one script
FOLDED = 500  # texts of a message that are kept as comparators have them
STEPS = 5_000  # of one run
PER_STEP = 16 << 10  # characters that are looked at in one step
ACTIONS = 32  # of one run
REDIRECTS = 4
VARIABLES = 128
VARIABLE = 4_000  # characters of a value (RFC 5229, section 6)
EXPANDED = 64 << 10  # characters of a string with its variables put in
MATCHES = 32  # numbered variables, with ${0}
TRACED = 200  # characters that are shown of a string in a trace
KEPT_IDS = 16  # of messages that one run of `duplicate` asks for
PIECE = 256 << 10  # bytes of a part that are read for a variable
EXPRESSIONS = 100  # regular ones of a script
EDITS = 64  # header fields that one run adds or takes out
FIELD = 2_000  # characters of a field that is added
