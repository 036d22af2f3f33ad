"""Server and node of one machine in one process, linked without a socket."""
