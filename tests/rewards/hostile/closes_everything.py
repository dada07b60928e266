import os

os.closerange(0, 64)
while True:
    pass
