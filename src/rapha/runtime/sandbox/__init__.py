"""What a job runs in: one interface, one driver a wall. Imports nothing: the launcher must start fast."""
