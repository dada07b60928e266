"""Where the work is done; the only rooms that may import vllm, deepspeed, ray or verl at the top of a file."""
