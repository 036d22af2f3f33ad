"""The client of a job, blocking and without Twisted: on this machine, and on a cluster."""
