"""The same training steps written several times, a module for each workload.

Each function returns `run(steps)`, which trains that many and returns `time.perf_counter()` at the end of the last.
It calls `turns.imported()` when what it imports is there.
"""
