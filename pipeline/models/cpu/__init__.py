"""Computing on a CPU: which precision is fastest here, which library multiplies matrices."""
