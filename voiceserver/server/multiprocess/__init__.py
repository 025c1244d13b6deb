"""Several server processes on one port (``serve --processes N``): one loop and one worker pool each.

::

    supervisor --config, lifeline--> child 0 \\
        |                       |--> child 1  > one port (SO_REUSEPORT), one board with everybody's figures
        '-- restarts the dead --'--> ...     /

The supervisor serves nobody. Each child puts its figures on the ``shared_stats`` once a second, and whichever is asked for ``/metrics``
or ``/v1/capacity`` answers for all (``rollup``). A child whose supervisor is gone ends at once.
"""
