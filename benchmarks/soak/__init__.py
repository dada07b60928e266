"""A long run that is harmed all the time and must come out as if nothing had happened."""
