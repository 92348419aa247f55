"""What a ladder of sizes shows: order, laws, forecasts and compute-optimal sizes; numbers only."""
