"""What a call acts on; used by other native modules alone."""
