"""Bundle and images to captions. Runs without torch."""
