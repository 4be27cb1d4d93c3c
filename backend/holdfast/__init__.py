"""Holdfast: a chat-agent backend that holds fast to what an agent says and does."""

__version__ = "0.1.0"
