"""Examples to new weights: batching, forward passes, teacher, chunked head, optimizer, DeepSpeed engine."""
