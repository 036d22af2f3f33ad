"""The command line: arguments in, tables, progress and exit codes out. Decisions live below."""
