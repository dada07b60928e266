"""Many runs or none: sweep, sft, analysis, forecast, report, methods, lab."""
