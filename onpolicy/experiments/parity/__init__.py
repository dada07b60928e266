"""Each method beside the published code whose name its config carries: the same numbers in, loss, gradient and advantages compared."""
