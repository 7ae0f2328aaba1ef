"""The ledger: what was about to be signed, what came of it, and what was refused.

`events` are the rows, `journal` is the hash-chained file on the signing path, `heads`
are its signed tips, `archive` is the database behind it.
"""
