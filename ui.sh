#!/bin/sh
# Starts the user interface; the first time it sets up its own environment.
cd "$(dirname "$0")" || exit 1
exec "$(command -v python3 || command -v python)" install.py ui "$@"
