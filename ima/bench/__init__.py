"""Benchmarks: each compares with something real in the same run and writes `outputs/bench/<name>.json`."""
