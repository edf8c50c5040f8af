"""Attacks on images in [0, 1]: one PGD loop with small hooks, FGSM, and what they maximise."""
