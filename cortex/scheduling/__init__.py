"""Decisions only: `Scheduler.handle(event, now)` gives instructions. No clock, no I/O, no Twisted."""
