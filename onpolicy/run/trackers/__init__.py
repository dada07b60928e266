"""Where a run's metrics, samples and config go; plug-ins of the kind ``tracker``: ``(run_dir, resume_at, *, options) -> Tracker``."""
