"""An agent's own question; used by other native modules alone."""
