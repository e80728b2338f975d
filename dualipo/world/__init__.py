"""The small world: captioned clips of moving shapes, an exact oracle that reads them, and simulated annotators.

It stands in for people and for real video, so that the whole experiment runs on a laptop. Nothing outside this package
knows it, but for the benchmark that `evaluate` runs with it.
"""
