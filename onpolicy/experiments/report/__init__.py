"""``onpolicy report``: runs as one self-contained HTML page, with every token of some rollouts to be looked at."""
