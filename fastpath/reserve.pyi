"""Memory of native doors for when the heap has none; nothing of it is for Python."""
