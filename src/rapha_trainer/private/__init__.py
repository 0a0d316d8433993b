"""The hospital's own trainer of private models (Tier A): DP-SGD with the patient as the unit.

    python -m rapha_trainer.private train | predict

The node runs it behind the walls of every job, with no file of the submitter in reach, and gives it
/rapha/in/private.json (the signed declaration and the noise that the node computed for it), and for training
/rapha/in/groups.i32: int32, little-endian, for each record of the split the number of its patient.

docs/adr/0016 says why one patient can't move what leaves here by more than epsilon and delta allow.
"""
