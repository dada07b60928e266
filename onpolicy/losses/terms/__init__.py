"""Loss terms, one file each; ``onpolicy.losses.objective`` sums them."""
