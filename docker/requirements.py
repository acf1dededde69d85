"""Prints what trueup needs, with the extras named as its argument, given pyproject.toml on standard input.

An image installs the dependencies with it before it has the source.
"""

import sys
import tomllib

project = tomllib.load(sys.stdin.buffer)["project"]
extras = [name for name in sys.argv[1].replace(",", " ").split() if name]
unknown = [name for name in extras if name not in project["optional-dependencies"]]
if unknown:
    known = ", ".join(project["optional-dependencies"])
    sys.exit(f"EXTRAS names {', '.join(unknown)}, expected some of {known}")
print(*project["dependencies"], *(line for name in extras for line in project["optional-dependencies"][name]), sep="\n")
