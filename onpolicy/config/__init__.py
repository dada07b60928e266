"""YAML and overrides to a resolved config: schema, plug-in names, options, schedules."""
