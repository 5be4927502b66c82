"""``tensair monitor``: the training of a running cluster, live in the terminal.

Asks the scheduler (`remote`), draws what it says (`drawing`), until it is enough
(`program`). Loads no torch: it runs where a person sits, not where a model learns.
"""
