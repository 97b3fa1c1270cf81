"""The suites as data, and definitions of tasks whose definition in the harness no longer works."""
