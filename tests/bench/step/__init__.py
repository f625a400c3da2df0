"""Parts of step_bench.py."""
