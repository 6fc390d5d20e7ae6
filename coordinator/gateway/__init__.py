"""The OpenAI-compatible front: routes by model name, holds requests while their model wakes, passes streams through."""
