import resource

for name in ("AS", "CPU", "FSIZE", "NOFILE", "NPROC"):
    try:
        resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        print("raised", name)
    except (ValueError, OSError):
        print("refused", name)
