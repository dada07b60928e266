"""onpolicy inside other trainers."""
