"""Audits: how far the explanations of a trained prototype network can be trusted."""
