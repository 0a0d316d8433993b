"""The broker: it owns the records, counts every one before it is handed over, and serves batches.

`store` holds records, `meter` counts them in a `journal`, `ring` shares memory with the job, `wire` is the
protocol, and `serve` answers the job. `rapha_trainer` is the other end.
"""
