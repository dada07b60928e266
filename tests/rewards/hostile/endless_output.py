while True:
    print("x" * 999)
