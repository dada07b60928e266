import socket

try:
    socket.create_connection(("127.0.0.1", 22), timeout=1)
except OSError as error:
    print(type(error).__name__, end=" ")
try:
    with open("/proc/self/net/dev") as file:
        print(*[line.partition(":")[0].strip() for line in list(file)[2:]])
except OSError:
    print("lo")
