"""``onpolicy diagnose``: what training did to a model, by what the two answer."""
