"""Search spaces, parameter budgets, and the feasible set of architectures that meet them."""
