"""One transformer shape: its fields, name, parameter and FLOP counts."""
