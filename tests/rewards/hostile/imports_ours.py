import importlib
import sys

found = []
sys.path += ["/runner", "/work", "/usr/lib/python3/dist-packages"]
for name in ("onpolicy", "rewards", "onpolicy.rewards", "inside", "launcher", "torch", "pip", "numpy", "yaml"):
    try:
        importlib.import_module(name)
        found.append(name)
    except ImportError:
        pass
print([name for name in found if name != "inside"] or "nothing imported")
