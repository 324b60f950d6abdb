"""Another vendor's model, behind an OpenAI-compatible HTTP endpoint."""
