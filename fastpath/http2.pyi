"""One HTTP/2 connection of a native door; used natively."""
