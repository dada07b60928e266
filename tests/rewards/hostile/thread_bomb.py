import threading
import time

threading.stack_size(65536)
started = 0
try:
    while True:
        threading.Thread(target=time.sleep, args=(99,), daemon=True).start()
        started += 1
except RuntimeError as error:
    print(started, error)
