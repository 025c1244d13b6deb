"""The built-in engines. Each module is imported by ``workers.registry.load`` only, in a worker process."""
