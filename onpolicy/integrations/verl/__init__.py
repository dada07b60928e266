"""The same contexts, losses and measures on verl (0.9.1 and later 0.9), which is neither forked nor patched.

verl drives: its rollout servers sample, its FSDP2 engines train. The plug-in adds what the teacher reads (``trainer``; ``agent_loop``
reads the students' texts), what it says (``engine``, ``teachers``), and the loss (``bridge``). ``store`` alone knows verl's data plane.
"""
