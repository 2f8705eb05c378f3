"""Speed of each kernel beside what the machine can do: `python -m benchmarks.kernels --help`."""
