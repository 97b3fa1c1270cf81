"""The command line: options, one call of the library, rows on stdout, progress on stderr."""
