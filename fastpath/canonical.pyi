"""One canonicaliser for method, host, path and query; its Python face is `fastpath.envoy.decode`."""
