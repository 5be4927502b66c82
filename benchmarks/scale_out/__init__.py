"""How the cost of the exchange grows with the replicas: emulated, and simulated."""
