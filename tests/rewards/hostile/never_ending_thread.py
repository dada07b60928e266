import threading
import time

threading.Thread(target=time.sleep, args=(10**6,)).start()
