"""One module per job: an Options dataclass and run(options, job)."""
