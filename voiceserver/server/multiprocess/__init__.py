"""Several server processes on one port (``serve --processes N``): one loop and one worker pool each.

::

    supervisor --config, lifeline--> child 0 \\
        |                       |--> child 1  > one port (SO_REUSEPORT), shared figures of everybody's figures
        '-- restarts the dead --'--> ...     /

The supervisor serves nobody. Each child writes its figures to ``shared_stats`` once a second. Whichever is asked for
``/metrics`` or ``/v1/capacity`` answers for all (``merge``). A child whose supervisor is gone ends at once.
"""
