"""How many callers the server carries: admission, the learned limit, calibration, and stages without workers."""
