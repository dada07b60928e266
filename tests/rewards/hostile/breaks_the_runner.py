import builtins
import json
import os
import sys


def nothing(*_, **__):
    raise RuntimeError("broken")


for module, name in (
    (json, "dumps"),
    (json, "loads"),
    (os, "write"),
    (builtins, "len"),
    (builtins, "isinstance"),
    (builtins, "print"),
):
    setattr(module, name, nothing)
sys.stdout = sys.__stdout__ = None
sys.modules.clear()
