"""The HTML report of a study, its figures, and the tables worth keeping in a repository."""
