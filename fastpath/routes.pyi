"""Routes of the configuration; used by other native modules alone."""
