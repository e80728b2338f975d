"""Quality gates: Great Expectations suites built from the configuration, their verdicts, and promotion by them."""
