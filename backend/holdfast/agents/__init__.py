"""Agents: what they are given, what they may say, and the adapters for models."""
