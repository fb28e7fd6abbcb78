#!/usr/bin/env bash
# Builds sdist and wheel, then installs the wheel apart from the checkout and runs the smoke tests on
# it there. What the package needs is taken from the environment that builds.
#   packaging/check_wheel.sh VENV DIST [PYTHON...]
# Each further PYTHON, an interpreter of another version with torch and Detectron2, runs them too.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD venv=$PWD/$1 dist=$2
shift 2
rm -rf "$dist"
# The wheel is built from the sdist, so that the sdist has all that the wheel needs.
"$venv/bin/python" -m build --no-isolation --outdir "$dist" .
wheel=$(ls "$PWD/$dist"/*.whl)

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
for python in "$venv/bin/python" "$@"; do
  name=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
  "$python" -m pip install --quiet --no-deps --target "$scratch/$name" "$wheel"
  mkdir -p "$scratch/$name/elsewhere"
  (
    cd "$scratch/$name/elsewhere"
    # The wheel stands first, before the checkout that an editable installation puts on the path.
    export PYTHONPATH="$scratch/$name" PYTHONDONTWRITEBYTECODE=1 WSIS_D2_INSTALLED="$scratch/$name"
    "$python" -m pytest -p no:cacheprovider -c "$checkout/pyproject.toml" --rootdir "$checkout" \
      "$checkout/tests/test_outside_checkout.py"
  )
  echo "smoke tests of $(basename "$wheel") pass on Python $name"
done
