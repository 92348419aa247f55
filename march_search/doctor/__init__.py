"""Is this installation well? Each check is a function that answers with one finding; none of them stops the others."""
