"""Where weights come from, how they are fetched, verified, converted and loaded."""
