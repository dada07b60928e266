import os

CLAIMS = {
    "no_json": b"\xff{",
    "two_values": b'{"values": [1, 2]}',
    "odd_kind": b'{"values": [{"object": 1}]}',
    "equal_hashes": b'{"values": [{"set": [' + b", ".join(b"%d" % (i * (2**61 - 1)) for i in range(20_000)) + b"]}]}",
    "half_a_character": b'{"values": ["\\ud800"]}',
    "nested": b'{"values": [' + b'{"list": [' * 900 + b"]}" * 900 + b"]}",
    "no_list": b'{"values": 3}',
    "huge_number": b'{"values": [' + b"9" * 5000 + b"]}",
}


def f(case):
    os.write(3, CLAIMS[case])
    os._exit(0)
