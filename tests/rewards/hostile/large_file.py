import os

file = os.open("/tmp/x", os.O_RDWR | os.O_CREAT)
os.lseek(file, 1 << 33, os.SEEK_SET)
os.write(file, b"x")
