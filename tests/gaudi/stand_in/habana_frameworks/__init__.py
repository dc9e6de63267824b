"""A stand-in for Gaudi's software, for tests: what its contract says, over tensors that the host holds."""
