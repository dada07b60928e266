import os

CLAIMS = {
    "no_json": b"\xff{",
    "two_values": b'{"values": [1, 2]}',
    "odd_kind": b'{"values": [{"object": 1}]}',
    "equal_hashes": b'{"values": [{"set": [' + b", ".join(b"%d" % (i * (2**61 - 1)) for i in range(20_000)) + b"]}]}",
    "half_a_character": b'{"values": ["\\ud800"]}',
    "nested": b'{"values": [' + b'{"list": [' * 900 + b"]}" * 900 + b"]}",
    "half_equal_hashes": b'{"values": [{"dict": ['
    + b", ".join(b"[%d, 0]" % (i if i % 2 else i * (2**61 - 1)) for i in range(30_000))
    + b"]}]}",
    "overflow": b'{"values": [{"complex": [1' + b"0" * 400 + b", 0]}]}",
    "error_that_is_a_list": b'{"error": [1]}',
    "error_that_is_nested": b'{"error": ' + b"[" * 950 + b"]" * 950 + b"}",
    "value_that_is_nested": b'{"values": [' + b"[" * 970 + b"]" * 970 + b"]}",
    "large_number_that_is_none": b'{"values": [{"int": 3}]}',
    "no_list": b'{"values": 3}',
    "huge_number": b'{"values": [' + b"9" * 5000 + b"]}",
}


def f(case):
    os.write(3, CLAIMS[case])
    os._exit(0)
