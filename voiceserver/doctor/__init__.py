"""``voiceserver doctor``: what this machine is, what is too low for this configuration and how to raise it, and what it carries.

``machine`` looks, ``engines`` measures (in a process of its own: never in a server), ``report`` prints. ``serve`` warns with the
same words.
"""
