#!/bin/sh
# Install the picker into a virtual environment: what the image's build stage runs, and what the tests run.
#   install.sh TARGET [PYTHON]     from the root of the project
set -eu
target=$1
python=${2:-python3}
"$python" -m venv "$target"
# Locked versions first, then the project itself without looking for any other.
"$target/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir -r requirements/run.txt
"$target/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir --no-deps .
# The root file system is read-only at run time: byte code is made now or never.
"$target/bin/python" -m compileall -q "$target/lib" || true
