"""Writing text with a trained or exported model."""
