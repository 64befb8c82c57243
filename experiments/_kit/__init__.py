"""What the experiments share, and no user of the package needs.

``options`` start a script, ``rows``, ``figures`` and ``report`` say what it found, ``reproduce``
runs all scripts, and ``results`` writes the page of results.
"""
