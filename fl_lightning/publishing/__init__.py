"""A run's adapters on the Hugging Face Hub: what is said of them, what is uploaded, and how."""
