"""The same networks through OpenVINO: the fast path on a CPU."""
