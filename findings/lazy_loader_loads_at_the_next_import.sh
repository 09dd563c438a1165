#!/usr/bin/env bash
# Expected: a module prepared with importlib.util.LazyLoader is loaded when one of its attributes is
# used, as the documentation says, so that `import` statements in other modules, which only bind the
# name, leave it unloaded.
# Is: the next `import` statement of the module loads it, since the import system reads the module's
# `__spec__`, which counts as an attribute. So it cannot keep a library, such as asyncio, from
# loading the modules that it imports and rarely uses. A module object without a spec is left alone.
set -euo pipefail

python3 - <<'PYTHON'
import importlib.util
import sys
import types

print("Python", sys.version.split()[0])


def lazily(name):
    spec = importlib.util.find_spec(name)
    spec.loader = importlib.util.LazyLoader(spec.loader)
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


prepared = lazily("colorsys")
before = type(prepared).__name__
import colorsys

after = type(prepared).__name__
print("LazyLoader: before the import statement", before, "- after it", after)

stand_in = sys.modules["stand_in_module"] = types.ModuleType("stand_in_module")
import stand_in_module

print("a module without a spec: unchanged", stand_in_module is stand_in)
sys.exit(0 if (before, after) == ("_LazyModule", "module") else 1)
PYTHON
