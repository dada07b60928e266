"""Loss terms, one file each; ``onpolicy.loss`` sums them."""
