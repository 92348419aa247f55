"""Cost of training a shape: memory per device, speed and hours."""
