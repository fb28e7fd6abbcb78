#!/usr/bin/env bash
# Builds sdist and wheel, then installs the wheel apart from the checkout and runs the smoke tests on
# it there, with what the environment VENV has.
#   packaging/check_wheel.sh VENV DIST [PYTHON...]
# For each PYTHON once more, in an empty environment of that interpreter, made as docs/install.md
# says, with the torch that the operators were built for. One at a time, below TMPDIR: 6 GB.
set -euo pipefail
cd "$(dirname "$0")/.."
checkout=$PWD venv=$PWD/$1 dist=$2
shift 2
for python in "$@"; do
  if ! command -v "$python" > /dev/null; then
    echo "check_wheel: $python is not installed; name interpreters of Python 3.10 to 3.13" >&2
    exit 2
  fi
done
rm -rf "$dist"
# The wheel is built from the sdist, so that the sdist has all that the wheel needs.
"$venv/bin/python" -m build --no-isolation --outdir "$dist" .
wheel=$(ls "$PWD/$dist"/*.whl)

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
mkdir "$scratch/elsewhere"

# smoke PYTHON FOLDER: the smoke tests, of the package installed in FOLDER.
smoke() {
  (
    cd "$scratch/elsewhere"
    export PYTHONDONTWRITEBYTECODE=1 WSIS_D2_INSTALLED="$2"
    "$1" -m pytest -p no:cacheprovider -c "$checkout/pyproject.toml" --rootdir "$checkout" \
      "$checkout/tests/test_outside_checkout.py"
  )
  echo "smoke tests of $(basename "$wheel") pass on $("$1" --version), $2"
}

"$venv/bin/python" -m pip install --quiet --no-deps --target "$scratch/target" "$wheel"
# The wheel stands first, before the checkout that an editable installation puts on the path.
PYTHONPATH="$scratch/target" smoke "$venv/bin/python" "$scratch/target"

built_for() { "$venv/bin/python" -c "import $1; print('$1==' + $1.__version__.split('+')[0])"; }
for python in "$@"; do
  fresh="$scratch/environment"
  "$python" -m venv --clear "$fresh"
  "$fresh/bin/pip" install --quiet "$(built_for torch)" "$(built_for torchvision)"
  "$fresh/bin/pip" install --quiet ./packaging/detectron2
  "$fresh/bin/pip" install --quiet "$wheel[pretrained]" pytest
  smoke "$fresh/bin/python" "$fresh"
done
