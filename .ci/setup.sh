#!/usr/bin/env bash
# Makes the environment that `make` uses. Each step leaves a stamp, written only after the step has
# ended well, that holds a hash of its inputs: run again after an interruption or a change, only
# what is needed is done again.
#   .ci/setup.sh PYTHON VENV
set -euo pipefail
cd "$(dirname "$0")/.."
python=$1 venv=$2
case $python in [0-9]*) python=python$python ;; esac # 3.12 means python3.12
stamps="$venv/stamps"

hash_of() { cat "$@" | sha256sum | cut -d' ' -f1; }

# step NAME HASH COMMAND...: runs COMMAND unless NAME's stamp holds HASH.
step() {
  local name=$1 hash=$2
  shift 2
  if [ "$(cat "$stamps/$name" 2>/dev/null || true)" = "$hash" ]; then return; fi
  local start=$SECONDS
  echo "setup: $name ..."
  rm -f "$stamps/$name"
  "$@"
  mkdir -p "$stamps"
  echo "$hash" > "$stamps/$name.part"
  mv "$stamps/$name.part" "$stamps/$name"
  echo "setup: $name done in $((SECONDS - start)) s"
}

make_venv() {
  if ! command -v "$python" > /dev/null; then
    echo "setup: $python is not installed; name a Python 3.10 to 3.13: make PYTHON=python3.12 ..." >&2
    exit 2
  fi
  rm -rf "$venv"
  "$python" -m venv "$venv"
}

# pip takes a package whose installation was cut short for installed. So an environment in which
# that may have happened is made afresh; pip's cache makes it quick.
begin() { mkdir -p "$stamps" && touch "$stamps/unfinished"; }
end() { rm -f "$stamps/unfinished"; }

install_requirements() {
  begin
  "$venv/bin/pip" install --quiet --requirement requirements.txt
  "$venv/bin/pip" install --quiet --no-deps panopticapi-lite==0.2.0
  end
}

install_detectron2() {
  begin
  "$venv/bin/pip" install --quiet --force-reinstall --no-deps ./packaging/detectron2
  "$venv/bin/pip" install --quiet ./packaging/detectron2
  end
}

install_wsis_d2() {
  rm -f wsis_d2/_C*.so
  "$venv/bin/pip" install --quiet --no-build-isolation --no-deps --editable .
}

sources=$(find wsis_d2/layers/csrc setup.py -type f | LC_ALL=C sort)
flags="${FORCE_CUDA:-} ${TORCH_CUDA_ARCH_LIST:-} ${WSIS_D2_NO_EXTENSION:-} ${NVCC_FLAGS:-}"
build=$({ cat requirements.txt $sources; echo "$flags"; pwd; } | sha256sum | cut -d' ' -f1)
if [ -z "${WSIS_D2_NO_EXTENSION:-}" ] && ! ls wsis_d2/_C*.so > /dev/null 2>&1; then
  rm -f "$stamps/extension"
fi
if [ -e "$stamps/unfinished" ]; then
  echo "setup: an earlier run was interrupted; making the environment afresh"
  rm -f "$stamps/venv"
fi
# The environment itself is remade only where it is missing, unfinished or another Python's.
step venv "$("$python" -c 'import sys; print(sys.version)' 2> /dev/null || echo missing) $(pwd)" make_venv
step requirements "$(hash_of requirements.txt)" install_requirements
step detectron2 "$(hash_of packaging/detectron2/*.py packaging/detectron2/pyproject.toml)" install_detectron2
step extension "$build" install_wsis_d2
