"""The run between machines: certificates, what travels, and the two sides of it on Flower."""
