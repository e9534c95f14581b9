"""What the model learns to predict."""
