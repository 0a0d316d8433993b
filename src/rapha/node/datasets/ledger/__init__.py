"""The disclosure ledger: what a dataset gave away, over all jobs of all organisations, and what is left.

    entries     what is written down: closed types, one line each
    chain       the file of those lines: hash-chained, locked, on disk before it is relied on
    tokens      patients and records as keyed tokens and dense ordinals
    cohorts     sets of them, as bitmaps in files that the chain names by digest
    partition   which sets of records can be told apart by comparing jobs, and when one is too small
    account     sums and caps
    ledger      all of it put together, opened for one operation at a time

It knows who was in which cohort, so it is opened in the dataset process alone.
"""
