import socket

held, pairs = 0, []
try:
    while True:
        pair = socket.socketpair()
        pairs.append(pair)
        for end in pair:
            end.setblocking(False)
            try:
                end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
                print("allowed setsockopt")
            except PermissionError:
                pass
            try:
                while True:
                    held += end.send(bytes(1 << 16))
            except BlockingIOError:
                pass
except OSError as error:
    print(error)
try:
    socket.send_fds(pairs[0][0], [b"x"], [0])
    print("allowed sendmsg")
except PermissionError:
    pass
print("little" if held < 64 << 20 else held)
