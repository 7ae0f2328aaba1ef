"""The ledger: intents to sign, their outcomes, and refusals.

`events` has the rows, `journal` the hash-chained file on the signing path, `heads` its
signed heads, and `archive` the database that is fed from it.
"""
