"""Replicas are not lost when their worker is retired, scaled down or closed.

A replica on such a worker learns what it has, hands it to its peers, and leaves.
"""
