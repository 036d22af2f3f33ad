"""The shuffle between machines: a node serves segments of its map outputs, another fetches them.

Decisions are pure (`fetch_queue`), disks are read and written in threads of their own, and the reactor's
thread only moves bytes between them and the transports. No NumPy and no Arrow: the node has neither.
"""
