import sys

while True:
    print("x" * 999, file=sys.stderr)
