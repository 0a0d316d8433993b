"""Processes that parse and decode files of strangers, walled off from everything else."""
