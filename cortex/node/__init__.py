"""The node: runs tasks in executors, keeps what they make and serves it; never unpickles."""
