#!/usr/bin/env bash
# Builds a wheel and runs the tests against it in a folder outside the checkout: those named on the command line, or all but the slow
# ones. PYTHON is a Python that has the dependencies.
set -eu
here=$(cd "$(dirname "$0")/.." && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# From a copy: a build leaves files behind, and a later wheel must not pick up what was deleted since.
mkdir "$work/source"
cp -r "$here"/{common,client,server,simulations,pyproject.toml,README.md,LICENSE} "$work/source"
"$PYTHON" -m build --wheel --no-isolation --outdir "$work/dist" "$work/source" >"$work/build.log" 2>&1 || { cat "$work/build.log" >&2; exit 1; }
"$PYTHON" -m pip install --quiet --no-deps --target "$work/site" "$work"/dist/*.whl
mkdir "$work/project"
cp -r "$here/tests" "$here/docs" "$here/deploy" "$here"/{README.md,CHANGELOG.md,Makefile,pyproject.toml,constraints.txt,LICENSE} "$work/project"
if [ -d "$here/../shared" ]; then ln -s "$(cd "$here/../shared" && pwd)" "$work/shared"; fi

cd "$work/project"
export PYTHONPATH="$work/site"
"$PYTHON" -c "import common, sys; sys.exit(not common.__file__.startswith('$work'))" || { echo "the wheel is not what is imported" >&2; exit 1; }
if [ $# -eq 0 ]; then set -- -m "not slow"; fi
"$PYTHON" -m pytest "$@"
