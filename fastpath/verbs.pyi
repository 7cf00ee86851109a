"""Classes of plain calls; used by other native modules alone."""
