"""The built-in engines. Each module is imported by ``voiceserver_workers.registry.load`` only, in a worker process."""
