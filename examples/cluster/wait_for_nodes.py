"""Waits until as many nodes have joined the Ray cluster at RAY_ADDRESS: python wait_for_nodes.py NUMBER"""

import os
import sys
import time

import ray  # noqa: TID253 it runs where Ray does

while True:
    try:
        ray.init(os.environ["RAY_ADDRESS"], logging_level="ERROR")
        break
    except ConnectionError:  # the head is still starting
        time.sleep(1)
while sum(node["Alive"] for node in ray.nodes()) < int(sys.argv[1]):
    time.sleep(1)
