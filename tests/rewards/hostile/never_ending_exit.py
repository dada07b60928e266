import atexit
import time

atexit.register(time.sleep, 10**6)
