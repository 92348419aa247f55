"""Before training: candidates, rungs, prices and the plan of a study or a ladder."""
