"""Noise that training and evaluation put behind speech, and learning from sound without text."""
