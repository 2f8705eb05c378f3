"""The command line: `spa JOB [flags]`."""
