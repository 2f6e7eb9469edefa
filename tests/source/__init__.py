"""Rules of the source code: these tests read the files only. `make check` runs them."""
