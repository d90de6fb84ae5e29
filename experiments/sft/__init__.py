"""Train the tiny multimodal model."""
