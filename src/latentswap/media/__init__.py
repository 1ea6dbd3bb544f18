"""Pictures in and out: decoding policy, encoding, atomic writes."""
