"""Episodes of clicks: played, measured, and shown."""
