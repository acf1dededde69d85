#!/bin/sh
# Fetches what a machine with torch alone lacks to run benchmarks/gpu.py, as wheels in benchmarks/wheels/ (not in git).
#
#   benchmarks/wheels.sh                      # for this Python and system, by the project's .venv
#   PYTHON_VERSION=3.12 benchmarks/wheels.sh  # for another Python
#
# Everything the project and DeepSpeed need but torch and what torch brings, in the locked versions.
set -eu
here=$(cd "$(dirname "$0")" && pwd)
python=${PYTHON:-$here/../.venv/bin/python}
rm -rf "$here/wheels"
mkdir -p "$here/wheels"
"$python" - > "$here/wheels/names.txt" <<'PYTHON'
import re
from importlib import metadata

from packaging.requirements import Requirement


def canonical(name):
    return re.sub(r"[-_.]+", "-", name).lower()


def closure(name, extras=(), seen=None):
    seen = set() if seen is None else seen
    if canonical(name) in seen:
        return seen
    try:
        lines = metadata.requires(name) or []
    except metadata.PackageNotFoundError:
        return seen
    seen.add(canonical(name))
    for line in lines:
        needed = Requirement(line)
        if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            closure(needed.name, needed.extras, seen)
    return seen


there = closure("torch") - {"setuptools"}
for name in sorted(closure("trueup", ("deepspeed",)) - there - {"trueup"}):
    print(f"{name}=={metadata.version(name)}")
PYTHON
grep -v '^deepspeed==' "$here/wheels/names.txt" > "$here/wheels/wheels.txt"
"$python" -m pip download -q --no-deps --only-binary=:all: ${PYTHON_VERSION:+--python-version "$PYTHON_VERSION"} \
  -d "$here/wheels" -r "$here/wheels/wheels.txt"
# DeepSpeed comes as source only; without its compiled operators it is a pure wheel.
grep '^deepspeed==' "$here/wheels/names.txt" > "$here/wheels/sources.txt" || exit 0
DS_BUILD_OPS=0 "$python" -m pip wheel -q --no-deps --no-build-isolation -w "$here/wheels" -r "$here/wheels/sources.txt"
