"""Time limits of tests."""

# Seconds until a test that waits for something fails. Only ends a test that would wait forever: a
# machine that is busy with other work needs a hundred times as long as an idle one.
HANG_SECONDS = 120.0
