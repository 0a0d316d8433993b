"""Membership inference against a trained model: who was in its training data, as far as an attack can tell.

The attack is the offline likelihood-ratio attack of Carlini et al., "Membership inference attacks from first
principles" (IEEE S&P 2022), with the patient as the unit. Numbers in, numbers out: nothing here reads a
record or runs a model.
"""
