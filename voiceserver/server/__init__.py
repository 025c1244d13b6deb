"""The server: composition, routes, pages, keys, TLS, and several processes on one port."""
