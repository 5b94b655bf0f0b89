"""What a sweep leaves on disk and in the tracker, and how it is read again.

A later invocation goes by it: the sweep's identity, outcomes, winners, and what all is made of.
"""
