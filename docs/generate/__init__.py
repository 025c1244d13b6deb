"""Writes every document that a machine can write: ``python -m docs.generate``, or ``make docs``.

==================================  ==============================================================================
docs/reference/NAME.md              the pages of the site
voiceserver/web/docs/NAME.html      the same pages as the server serves them below ``/docs/``
voiceserver/web/docs/asyncapi.json  the native wire, AsyncAPI 3.0
voiceserver/web/docs/openapi.json   the HTTP paths, OpenAPI 3.1
==================================  ==============================================================================

Rule: a text about a setting, a field, a metric or a command stands in the code beside that thing, and nowhere else.
"""
