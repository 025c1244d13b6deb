"""What engines behind an HTTP endpoint share, in the server and in a worker: address, proxy, Retry-After, bounded bodies."""
