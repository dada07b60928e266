held = []
number = 0
while True:
    held.append(open(f"/tmp/{number}", "w"))
    number += 1
