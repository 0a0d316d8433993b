"""Tier A on the node: what a private job is promised, and how the hospital's own trainer is run for it."""
