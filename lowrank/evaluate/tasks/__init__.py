"""The suites as data, and task definitions that the harness's own no longer serve."""
